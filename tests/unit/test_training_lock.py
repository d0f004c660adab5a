"""A run directory has one writer at a time, and what a dead process held is free."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from niblick.artifact import save_checkpoint
from niblick.cli import main
from niblick.data.dataset import Dataset
from niblick.errors import TrainingError
from niblick.files import locked
from niblick.model import LanguageModel
from niblick.recipe import recipe_to_toml
from niblick.text.tokenizer import load_tokenizer
from niblick.training.run_folder import LOCK_FILE, claimed, claimed_new
from training_runs import run, tiny_dataset, tiny_recipe

HOLDER = """
import sys, time
from pathlib import Path
from niblick.files import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held_by_another(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that is the writer of the run directory `folder` until its input ends."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-c", HOLDER, str(folder / LOCK_FILE)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    process = subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny_dataset(tmp_path_factory.mktemp("data") / "shards")


def test_a_run_that_another_process_trains_is_refused_until_that_process_is_dead(
    dataset: Dataset, tmp_path: Path
) -> None:
    out, recipe = tmp_path / "run", tiny_recipe(duration="2 steps")
    with held_by_another(out) as process:
        for resume in (False, True):
            with pytest.raises(TrainingError, match="is in use: another process trains or packs"):
                run(recipe, dataset, out, resume=resume)
        assert [path.name for path in out.iterdir()] == [LOCK_FILE]
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert (out / LOCK_FILE).exists()
    assert run(recipe, dataset, out).steps == 2


def test_a_claim_outlives_no_child_that_was_forked_while_it_was_held(tmp_path: Path) -> None:
    (begun, begin), (ending, end) = os.pipe(), os.pipe()
    with claimed(tmp_path / "run"):
        child = os.fork()
        if not child:
            os.close(end)
            os.write(begin, b"x")
            os.read(ending, 1)
            os._exit(0)
        os.read(begun, 1)
    try:
        with claimed(tmp_path / "run"):
            pass
    finally:
        os.close(end)
        os.waitpid(child, 0)
        for descriptor in (begun, begin, ending):
            os.close(descriptor)


def test_the_thread_that_holds_a_run_may_claim_it_again_and_no_other_may(tmp_path: Path) -> None:
    said = []

    def other() -> None:
        try:
            with claimed(tmp_path):
                said.append("claimed")
        except TrainingError:
            said.append("refused")

    with claimed(tmp_path):
        with claimed(tmp_path / "." / ""):
            pass
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    other()
    assert said == ["refused", "claimed"]


def test_new_runs_that_begin_together_get_directories_of_their_own(tmp_path: Path) -> None:
    found: list[str] = []
    barrier = threading.Barrier(6)

    def begin() -> None:
        barrier.wait()
        with claimed_new(tmp_path / "runs", "tiny") as path:
            (path / "file").touch()
            found.append(path.name)

    threads = [threading.Thread(target=begin) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [f"tiny-{number}" for number in range(1, 7)]


def test_a_claim_that_fails_leaves_a_folder_only_where_there_is_something_in_it(
    tmp_path: Path,
) -> None:
    for path, before in ((tmp_path / "new", False), (tmp_path / "there", True)):
        if before:
            path.mkdir()
        with pytest.raises(ZeroDivisionError), claimed(path):
            raise ZeroDivisionError
        assert path.exists() == before
    with pytest.raises(ZeroDivisionError), claimed_new(tmp_path, "run") as path:
        (path / "file").touch()
        raise ZeroDivisionError
    assert (path / "file").exists()


def test_a_lock_whose_file_was_removed_while_another_waited_is_taken_on_the_new_file(
    tmp_path: Path,
) -> None:
    path, order = tmp_path / "lock", []

    def wait() -> None:
        with locked(path):
            order.append("second")
            with pytest.raises(BlockingIOError), locked(path, wait=False):
                pass

    with locked(path):
        thread = threading.Thread(target=wait)
        thread.start()
        order.append("first")
        path.unlink()
    thread.join()
    assert order == ["first", "second"] and path.exists()


@pytest.mark.parametrize("command", ["pack", "resume", "out"])
def test_commands_that_write_into_a_run_in_use_end_with_one_line_and_exit_code_2(
    tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, recipe = tmp_path / "run", tiny_recipe()
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "recipe.toml").write_text(recipe_to_toml(recipe))
    tensors = dict(LanguageModel(recipe.model, seed=0).state_dict())
    save_checkpoint(
        folder / "checkpoints" / "final.safetensors",
        tensors=tensors,
        recipe=recipe,
        tokenizer=load_tokenizer("bytes"),
        meta={},
    )
    arguments = {
        "pack": ["pack", str(folder), "--codec", "int-zlib", "--out", str(folder / "artifact.nib")],
        "resume": ["train", "--resume", str(folder)],
        "out": ["train", str(folder / "recipe.toml"), "--out", str(folder)],
    }[command]
    with held_by_another(folder) as process:
        with pytest.raises(SystemExit) as done:
            main(arguments)
        process.terminate()
    output = capsys.readouterr()
    assert done.value.code == 2 and "is in use" in output.err and output.err.count("\n") == 1
    assert not (folder / "artifact.nib").exists()
    if command == "pack":
        with pytest.raises(SystemExit) as done:
            main([*arguments, "--json"])
        packed = json.loads(capsys.readouterr().out)
        assert done.value.code == 0 and packed["bytes"] == (folder / "artifact.nib").stat().st_size
