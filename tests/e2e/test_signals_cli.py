"""A command that a signal stops ends with 128 + its number, in one line, and never a traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

LONG = ("--duration", "100000 steps", "--set", "training.validation.every=0")


def start(*arguments: object) -> subprocess.Popen[str]:
    """`niblick ARGUMENTS` in a process of its own."""
    path = os.pathsep.join(str(Path(entry).resolve()) for entry in sys.path if entry)
    return subprocess.Popen(
        [sys.executable, "-m", "niblick", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    """Until `path` is there and not empty; the process must be alive until then."""
    deadline = time.monotonic() + 120
    while not (path.exists() and path.stat().st_size) and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_training_stops_with_a_checkpoint_and_the_signals_exit_code(
    recipe: Path, number: int, code: int
) -> None:
    process = start("train", recipe, "--out", "run", *LONG)
    wait_for(Path("run/metrics.jsonl"), process)
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    assert process.returncode == code
    assert "Traceback" not in err
    assert err.splitlines()[-1].startswith("niblick: stopped at step ")
    assert len(list(Path("run/checkpoints").glob("step-*"))) == 1


def test_more_signals_end_it_at_once_and_print_no_traceback(recipe: Path) -> None:
    process = start("train", recipe, "--out", "run", *LONG)
    wait_for(Path("run/metrics.jsonl"), process)
    while process.poll() is None:
        process.send_signal(signal.SIGINT)
        time.sleep(0.001)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in err and "Exception" not in err, err
    assert err.count("niblick: ") <= 1


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_any_other_command_says_what_stopped_it_and_leaves_nothing_half_written(
    tmp_path: Path, number: int, code: int
) -> None:
    (tmp_path / "texts").mkdir()
    for name in ("train", "validation"):
        (tmp_path / "texts" / name).mkdir()
        (tmp_path / "texts" / name / "a.txt").write_text(f"some {name} words\n" * 400_000)
    process = start("data", "prepare", tmp_path / "texts", "--out", tmp_path / "d")
    deadline = time.monotonic() + 60
    while not _has_handlers(process.pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.3)
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (
        code,
        f"niblick: stopped by {signal.Signals(number).name}\n",
    )
    assert [entry.name for entry in tmp_path.iterdir()] == ["texts"]


def _has_handlers(process: int) -> bool:
    """Whether the command has set its handlers; Python itself has none for SIGTERM."""
    status = Path(f"/proc/{process}/status").read_text()
    caught = int(
        next(line for line in status.splitlines() if line.startswith("SigCgt")).split()[1], 16
    )
    return bool(caught >> (signal.SIGTERM - 1) & 1)
