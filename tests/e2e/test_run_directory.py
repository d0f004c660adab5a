"""What is measured later never changes what a run has said of itself, and runs that start together
keep out of each other's way.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from commands import run
from niblick.data.prepare import prepare
from niblick.evaluation import read_score

LONG = ("--duration", "100000 steps", "--set", "training.validation.every=0")


def start(*arguments: object, launcher: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    """`niblick ARGUMENTS` in a process of its own."""
    path = os.pathsep.join(filter(None, sys.path))
    return subprocess.Popen(
        [sys.executable, *launcher, "-m", "niblick", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def checkpoints(folder: Path) -> set[str]:
    """Names of the checkpoints that are there now."""
    return {path.name for path in (folder / "checkpoints").glob("step-*")}


def wait_for_another(folder: Path, process: subprocess.Popen[str]) -> None:
    """Until a checkpoint is there that was not; the process must be alive until then."""
    before, deadline = checkpoints(folder), time.monotonic() + 120
    while not checkpoints(folder) - before and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    assert checkpoints(folder) - before


def test_no_evaluation_changes_a_runs_headline_or_what_compare_takes(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("train", recipe, "--out", "run", "--json") == 0
    folder = recipe.parent / "run"
    card = json.loads(capsys.readouterr().out)
    assert run("compare", folder, "--json") == 0
    before = json.loads(capsys.readouterr().out)["runs"][0]["bpb"]["values"]
    assert before == [card["packed_bpb"]]

    for split in ("train", "validation"):
        (recipe.parent / "other" / split).mkdir(parents=True)
        (recipe.parent / "other" / split / "a.txt").write_text(f"Another {split} text. " * 9)
    prepare(recipe.parent / "other", out=recipe.parent / "shards", tokenizer="bytes")
    settings: list[tuple[object, ...]] = [
        ("--data", recipe.parent / "shards"),
        ("--context", 16),
        ("--precision", "bf16"),
        ("--mode", "sliding", "--stride", 32),
        ("--ttt", "sgd", "--ttt-set", "lr=0.5"),
        ("--ttt", "sgd", "--ttt-set", "lr=0.25"),
        ("--engine", "torch", "--batch-tokens", 64),
        (),
    ]
    names = {path.name for path in (folder / "scores").iterdir()}
    assert len(names) == 2
    for flags in settings:
        assert run("eval", folder, *flags) == 0
    names = {path.name for path in (folder / "scores").iterdir()}
    assert len(names) == 2 + 7  # another size of passes, and nothing else, decide nothing
    for path in (folder / "scores").iterdir():
        assert path.stem == read_score(path).name

    after = json.loads((folder / "card.json").read_text())
    assert {**after, "scores": []} == card and len(after["scores"]) == 6
    headline = (folder / "card.md").read_text().splitlines()[0]
    assert f"{card['packed_bpb']:.4f} bits per byte" in headline
    capsys.readouterr()
    assert run("compare", folder, "--json") == 0
    again = json.loads(capsys.readouterr().out)["runs"][0]["bpb"]["values"]
    assert again == before


def test_two_trainings_that_start_together_both_run_in_directories_of_their_own(
    recipe: Path,
) -> None:
    processes = [start("train", recipe, "--duration", "2 steps", "--json") for _ in range(2)]
    results = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], results
    runs = sorted(path.name for path in (recipe.parent / "runs").iterdir())
    assert runs == ["tiny-1", "tiny-2"]
    for name in runs:
        assert (recipe.parent / "runs" / name / "card.json").is_file()
        assert sum(f"run directory: runs/{name}\n" in errors for _, errors in results) == 1


def test_a_run_in_training_is_nobody_elses_and_one_that_died_can_be_resumed(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    every = ("--set", "training.checkpoint_every=20 steps")
    first, folder = start("train", recipe, "--out", "run", *LONG, *every), recipe.parent / "run"
    wait_for_another(folder, first)
    for arguments in (("train", recipe, "--out", "run"), ("train", "--resume", "run")):
        assert run(*arguments) == 2
        errors = capsys.readouterr().err
        assert "is in use" in errors and errors.count("\n") == 1
    first.send_signal(signal.SIGKILL)
    first.communicate()
    again = start("train", "--resume", "run")
    wait_for_another(folder, again)
    again.send_signal(signal.SIGTERM)
    assert "stopped at step" in again.communicate(timeout=120)[1]
    assert run("eval", "run") == 0
    assert not (folder / "card.json").exists() and len(list((folder / "scores").iterdir())) == 1


def test_the_processes_of_one_launch_share_a_new_directory(recipe: Path) -> None:
    launcher = ("-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone")
    process = start("train", recipe, "--duration", "2 steps", launcher=launcher)
    errors = process.communicate(timeout=300)[1]
    assert process.returncode == 0, errors[-2000:]
    assert [path.name for path in (recipe.parent / "runs").iterdir()] == ["tiny-1"]
    assert (recipe.parent / "runs" / "tiny-1" / "card.json").is_file()
    assert errors.count("run directory: runs/tiny-1") == 1
    again = start("train", recipe, "--out", "runs/tiny-1", launcher=launcher)
    errors = again.communicate(timeout=300)[1]
    assert again.returncode != 0 and "holds a run; continue it with --resume" in errors
    assert "the main process could not go on" in errors and "gloo" not in errors
