"""How many processors there are for us, and that nobody's threads spin while they wait."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from niblick import runtime

UNIFIED = "30 1 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
FIRST = "31 1 0:27 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
FROM_WITHIN = "31 1 0:27 /docker/ab /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"
MEMORY = "32 1 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
CHOICES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")
OURS = (*CHOICES, "OPENBLAS_THREAD_TIMEOUT", "OMP_NUM_THREADS")


def _machine(root: Path, mounts: str, group: str, files: dict[str, str]) -> Path:
    files = {"proc/self/mountinfo": mounts, "proc/self/cgroup": group, **files}
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.fixture
def eight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)


@pytest.mark.usefixtures("eight")
@pytest.mark.parametrize(
    ("mounts", "group", "files", "expected"),
    [
        (UNIFIED, "0::/a/b\n", {"sys/fs/cgroup/a/b/cpu.max": "200000 100000\n"}, 2),
        (UNIFIED, "0::/a/b\n", {"sys/fs/cgroup/a/b/cpu.max": "150000 100000\n"}, 2),
        (UNIFIED, "0::/a/b\n", {"sys/fs/cgroup/a/b/cpu.max": "10000 100000\n"}, 1),
        (UNIFIED, "0::/a/b\n", {"sys/fs/cgroup/a/b/cpu.max": "max 100000\n"}, 8),
        (UNIFIED, "0::/a/b\n", {"sys/fs/cgroup/a/b/cpu.max": "9900000 100000\n"}, 8),
        (UNIFIED, "0::/\n", {"sys/fs/cgroup/cpu.max": "300000 100000\n"}, 3),
        (UNIFIED, "0::/a\n", {"sys/fs/cgroup/a/cpu.max": "broken\n"}, 8),
        (UNIFIED, "", {}, 8),
        ("", "0::/a\n", {}, 8),
        ("nonsense\n - cgroup2\n", "0::/a\n", {}, 8),
    ],
)
def test_a_quota_of_the_second_version_limits_the_processors(
    tmp_path: Path, mounts: str, group: str, files: dict[str, str], expected: int
) -> None:
    machine = _machine(tmp_path, mounts, group, files)
    assert runtime.available_processors(machine) == expected


@pytest.mark.usefixtures("eight")
def test_the_smallest_quota_of_a_group_and_those_around_it_holds(tmp_path: Path) -> None:
    inner, outer = "sys/fs/cgroup/a/b/cpu.max", "sys/fs/cgroup/a/cpu.max"
    files = {inner: "500000 100000\n", outer: "300000 100000\n"}
    assert runtime.available_processors(_machine(tmp_path, UNIFIED, "0::/a/b\n", files)) == 3


@pytest.mark.usefixtures("eight")
@pytest.mark.parametrize(
    ("mounts", "folder"),
    [
        (MEMORY + FIRST, "sys/fs/cgroup/cpu,cpuacct/docker/ab"),
        (MEMORY + FROM_WITHIN, "sys/fs/cgroup/cpu"),
    ],
)
@pytest.mark.parametrize(("quota", "expected"), [("250000", 3), ("-1", 8)])
def test_a_quota_of_the_first_version_limits_the_processors(
    tmp_path: Path, mounts: str, folder: str, quota: str, expected: int
) -> None:
    files = {f"{folder}/cpu.cfs_quota_us": f"{quota}\n", f"{folder}/cpu.cfs_period_us": "100000\n"}
    group = "5:memory:/docker/ab\n4:cpuacct,cpu:/docker/ab\n0::/\n"
    assert runtime.available_processors(_machine(tmp_path, mounts, group, files)) == expected


def test_no_more_processors_than_the_process_may_run_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3}, raising=False)
    files = {"sys/fs/cgroup/cpu.max": "300000 100000\n"}
    assert runtime.available_processors(_machine(tmp_path, UNIFIED, "0::/\n", files)) == 1
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert runtime.available_processors(tmp_path) == 1


def _environment(script: str, **given: str) -> str:
    """What a fresh interpreter says that has only `given` of the variables in question."""
    kept = {name: value for name, value in os.environ.items() if name not in OURS}
    run = subprocess.run(
        [sys.executable, "-c", script],
        env={**kept, **given},
        capture_output=True,
        text=True,
        check=True,
    )
    return run.stdout + run.stderr


SHOW = f"import os; print([os.environ.get(name) for name in {CHOICES!r}])"


def test_threads_of_libraries_that_are_loaded_later_sleep_while_they_wait() -> None:
    said = _environment(f"import niblick; {SHOW}; print(os.environ['OPENBLAS_THREAD_TIMEOUT'])")
    assert said == "['PASSIVE', None, None, None]\n16\n"
    script = "import niblick, torch, os; print(torch.__config__.parallel_info())"
    display = _environment(script, OMP_DISPLAY_ENV="true")
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in display or "OMP_WAIT_POLICY='PASSIVE'" in display


@pytest.mark.parametrize("name", CHOICES)
def test_how_the_user_has_threads_wait_stays(name: str) -> None:
    said = _environment(f"import niblick; {SHOW}", **{name: "17"})
    assert said == f"{['17' if each == name else None for each in CHOICES]}\n"


def test_a_quota_sets_the_number_of_threads_unless_the_user_does() -> None:
    script = """
from niblick import runtime
import os
os.environ.pop("OMP_NUM_THREADS", None) if "GIVEN" not in os.environ else None
os.cpu_count, runtime.available_processors = lambda: 64, lambda: 3
runtime.prepare_threads()
print(os.environ["OMP_NUM_THREADS"])
"""
    assert _environment(script) == "3\n"
    assert _environment(script, OMP_NUM_THREADS="5", GIVEN="1") == "5\n"


SETTLE = """
import torch
torch.set_num_threads(2)
from niblick import runtime
runtime.available_processors = lambda: 2
runtime.settle_threads()
runtime.settle_threads()
"""


def test_one_line_says_what_to_set_where_torch_came_first() -> None:
    said = _environment(SETTLE)
    assert said.count("OMP_WAIT_POLICY=passive") == 1
    assert _environment(SETTLE, OMP_WAIT_POLICY="passive") == ""
    assert _environment(SETTLE.replace("import torch\n", "import niblick, torch\n", 1)) == ""


def test_work_takes_the_threads_it_is_given_and_otherwise_no_more_than_processors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = torch.get_num_threads()
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(runtime, "available_processors", lambda: 2)
    try:
        for wanted, used, expected in [(3, 1, 3), (None, 5, 2), (None, 1, 1)]:
            torch.set_num_threads(used)
            runtime.settle_threads(wanted)
            assert torch.get_num_threads() == expected
        monkeypatch.setenv("OMP_NUM_THREADS", "4")
        torch.set_num_threads(4)
        runtime.settle_threads()
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)
