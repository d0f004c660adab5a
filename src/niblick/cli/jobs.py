"""Training runs side by side: each a process of its own, here or wherever an executor runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from niblick.errors import NiblickError, TrainingError
from niblick.executors import open_executor, own_gpu, waiting_pool
from niblick.runtime import STARTER, environment_of, visible_gpus

if TYPE_CHECKING:
    from niblick.recipe import Recipe

JobsOption = Annotated[
    int | None,
    typer.Option(
        min=1, help="Runs side by side; else one for each GPU where there are several, or one."
    ),
]


@dataclass(frozen=True)
class TrainingJob:
    """One run: the recipe's file, the run directory and the seed; plain values, so that any
    executor can carry it.
    """

    recipe: str
    folder: str
    seed: int
    plugins: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


def device_flags(device: str | None) -> tuple[str, ...]:
    """The options by which a run computes on `device`."""
    return () if device is None else (f"--device={device}",)


@contextmanager
def job_pool(recipe: Recipe, jobs: int | None, executor: str | None) -> Iterator[Executor | None]:
    """None to run here one after another, threads that wait for processes, or the user's executor.

    Runs on GPUs of their own do not slow each other down; `NiblickError` for others whose duration
    is a time.
    """
    from niblick.units import Duration

    if jobs is not None and executor is not None:
        raise NiblickError("--jobs are this machine's, and --executor has its own; give one")
    gpus = visible_gpus()
    count = jobs or max(1, len(gpus) if executor is None else 1)
    timed = Duration.parse(recipe.training.duration).unit == "seconds"
    if timed and (executor is not None or count > max(1, len(gpus))):
        raise NiblickError(
            "runs side by side slow each other down: give --duration in steps or tokens, not "
            f"{recipe.training.duration!r}, or leave --jobs and --executor out"
        )
    if executor is not None:
        with open_executor(executor) as pool:
            yield pool
        return
    with waiting_pool(count, gpus) as pool:
        try:
            yield pool
        except BaseException:
            for process in list(_running):
                process.terminate()  # it writes its checkpoint; the pool's threads wait for it
            raise


_running: set[subprocess.Popen[bytes]] = set()


@contextmanager
def start_training(job: TrainingJob) -> Iterator[subprocess.Popen[bytes]]:
    """`niblick train` in a process of its own, resuming what was begun, on the GPU of this thread
    if it has one; its output goes to FOLDER/log.txt. Signals reach it through this process, once;
    it ends with the block, of its own accord or because that fails. One that has not begun when
    this process is killed does not begin.
    """
    folder = Path(job.folder)
    if any((folder / "checkpoints").glob("step-*")):
        arguments = ["--resume", job.folder]
    else:
        arguments = [job.recipe, "--seed", str(job.seed), "--out", job.folder]
    arguments += [*(f"--plugin={module}" for module in job.plugins), *job.options]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log.txt").open("ab") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "niblick", "train", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env={**(environment_of(own_gpu()) or os.environ), STARTER: str(os.getpid())},
            start_new_session=True,
        )
    _running.add(process)
    try:
        yield process
        process.wait()
    except BaseException:
        process.terminate()  # it writes its checkpoint
        process.wait()
        raise
    finally:
        _running.discard(process)


def run_training(job: TrainingJob) -> None:
    """Train one run to its end; `TrainingError` with its last words where it fails."""
    with start_training(job) as process:
        pass
    if process.returncode:
        raise TrainingError(last_words(job.folder, process.returncode))


def last_words(folder: str | Path, code: int) -> str:
    """How a run failed, by the last line of its log."""
    lines = (Path(folder) / "log.txt").read_text("utf-8", "replace").strip().splitlines()
    return f"{folder} failed with exit code {code}: {lines[-1] if lines else 'no output'}"
