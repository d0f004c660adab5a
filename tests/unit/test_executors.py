"""Where jobs run: pools that give each job a GPU, the user's executors, and what they refuse."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path

import pytest

from niblick.cli import jobs
from niblick.cli.jobs import job_pool
from niblick.errors import NiblickError
from niblick.executors import open_executor, own_gpu, process_pool, run_all, waiting_pool
from niblick.recipe import load_recipe
from niblick.runtime import environment_of, read_world, visible_gpus


def test_gpus_are_those_that_the_environment_allows_else_those_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_gpus(tmp_path) == ("0", "1")
    for value, expected in (
        ("", ()),
        ("3,1", ("3", "1")),
        ("2,-1,0", ("2",)),
        ("GPU-a", ("GPU-a",)),
    ):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
        assert visible_gpus(tmp_path) == expected


def test_each_of_several_jobs_has_a_gpu_of_its_own() -> None:
    meeting = threading.Barrier(3)

    def job(_: int) -> str | None:
        meeting.wait(timeout=30)  # all three at once
        return own_gpu()

    with waiting_pool(3, ("4", "5", "6")) as pool:
        assert pool is not None
        assert sorted(run_all(job, range(3), pool)) == ["4", "5", "6"]
    assert own_gpu() is None and environment_of(None) is None
    assert environment_of("5") == {**os.environ, "CUDA_VISIBLE_DEVICES": "5"}
    with waiting_pool(1) as pool:
        assert pool is None


def test_jobs_are_one_for_each_gpu_and_may_be_timed_only_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = load_recipe("pocket", ['training.duration="600s"'])
    monkeypatch.setattr(jobs, "visible_gpus", lambda: ("0", "1"))
    with job_pool(recipe, None, None) as pool:
        assert isinstance(pool, ThreadPoolExecutor) and pool._max_workers == 2
    monkeypatch.setattr(jobs, "visible_gpus", lambda: ())
    with job_pool(recipe, None, None) as pool:
        assert pool is None
    for how in ((2, None), (None, "concurrent.futures:ThreadPoolExecutor")):
        with pytest.raises(NiblickError, match="slow each other down"), job_pool(recipe, *how):
            pass
    with pytest.raises(NiblickError, match="give one"), job_pool(recipe, 2, "a:b"):
        pass


def broken() -> Executor:
    raise OSError("no cluster")


def nothing() -> None:
    return None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module:f", "is not like"),
        ("concurrent.futures:Nothing", "is not like"),
        ("concurrent.futures", "is not like"),
        ("builtins:list", "gave a list, not a"),
        ("concurrent.futures:Executor.submit", "is not like"),
        ("math:sqrt", "failed: "),
    ],
)
def test_what_makes_no_executor_is_refused_in_one_line(name: str, message: str) -> None:
    with pytest.raises(NiblickError, match=message) as refused, open_executor(name):
        pass
    assert "\n" not in str(refused.value)


def test_a_factory_may_lie_in_the_folder_where_the_user_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    factory = "import concurrent.futures as f\ndef make(): return f.ThreadPoolExecutor(1)\n"
    Path("cluster_here.py").write_text(factory)
    Path("cluster_broken.py").write_text("def make(:")
    with open_executor("cluster_here:make") as pool:
        assert list(run_all(abs, [-2], pool)) == [2]
    with pytest.raises(NiblickError, match="is not like"), open_executor("cluster_broken:make"):
        pass


def test_the_executor_of_a_factory_is_used_and_closed() -> None:
    with open_executor("concurrent.futures:ThreadPoolExecutor") as pool:
        assert sorted(run_all(abs, [-2, 1], pool)) == [1, 2]
    with pytest.raises(RuntimeError):
        pool.submit(abs, 1)


def test_a_worker_that_ends_is_one_error_that_says_how_to_go_on() -> None:
    with pytest.raises(NiblickError, match="a worker process ended"), process_pool(2) as pool:
        list(run_all(os._exit, [3, 3], pool))


def test_workers_end_with_a_process_that_is_killed() -> None:
    code = (
        "import os, sys\n"
        "from niblick.executors import process_pool\n"
        "if __name__ == '__main__':\n"
        "    with process_pool(2) as pool:\n"
        "        print(pool.submit(os.getpid).result(), flush=True)\n"
        "        sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline()
        process.kill()
        process.communicate(timeout=60)  # until the last process that holds the pipe has ended


@pytest.mark.parametrize(
    ("rank", "size", "local"),
    [("x", "2", "0"), ("0", "", "0"), ("2", "2", "0"), ("-1", "2", "0"), ("0", "2", "-1")],
)
def test_an_environment_of_no_launch_is_one_error(
    monkeypatch: pytest.MonkeyPatch, rank: str, size: str, local: str
) -> None:
    for name, value in (("RANK", rank), ("WORLD_SIZE", size), ("LOCAL_RANK", local)):
        monkeypatch.setenv(name, value)
    with pytest.raises(NiblickError, match=f"RANK={rank}, WORLD_SIZE={size}"):
        read_world()
