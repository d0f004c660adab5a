"""Streaming a large corpus into shards from the command line: its workers, parts and progress."""

from __future__ import annotations

import json
import re
import time
from concurrent.futures import Executor
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path

import typer

from niblick.data.dataset import Dataset
from niblick.data.stream import Progress, Streaming, prepare_stream
from niblick.errors import DataError
from niblick.executors import open_executor, process_pool
from niblick.runtime import available_processors
from niblick.text.tokenizer import Tokenizer

_EVERY = 5.0  # seconds between two lines


@dataclass(frozen=True)
class Work:
    """Who does the work: processes here, part "I/N" of it, an executor's factory."""

    workers: int | None = None
    part: str | None = None
    executor: str | None = None

    def pool(self) -> AbstractContextManager[Executor | None]:
        """The executor that is asked for, else worker processes."""
        if self.executor is None:
            return process_pool(self.workers or available_processors())
        if self.workers is not None:
            raise DataError("--workers are this machine's, and --executor has its own; give one")
        return open_executor(self.executor)

    def numbers(self) -> tuple[int, int]:
        """(i, n) of "i/n"; `DataError` for anything else."""
        if self.part is None:
            return 1, 1
        match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", self.part)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise DataError(f"--part {self.part!r} is not like 2/4: the second of four")
        return int(match[1]), int(match[2])


def prepare_large(
    corpus: str, out: Path, settings: Streaming, fixed: Tokenizer | None, work: Work
) -> Dataset | Progress:
    """Stream `corpus` into shards in `out`, saying every few seconds how far it is."""
    part = work.numbers()
    with work.pool() as pool:
        return prepare_stream(
            corpus, out, settings, fixed, executor=pool, part=part, report=_Lines(), say=_note
        )


def show_part(progress: Progress, as_json: bool) -> None:
    """What is left after a part."""
    if as_json:
        typer.echo(json.dumps(asdict(progress)))
        return
    typer.echo(
        f"{progress.units:,} of {progress.of:,} units are tokenized; the part that does the last"
        " puts the shards together"
    )


def _note(message: str) -> None:
    typer.echo(f"note: {message}", err=True)


class _Lines:
    """A line of progress on standard error now and then: what is done, its rate, time left."""

    def __init__(self) -> None:
        self._began = self._last = time.monotonic()
        self._first: Progress | None = None

    def __call__(self, now: Progress) -> None:
        if self._first is None:
            self._first = now
        clock = time.monotonic()
        if clock - self._last < _EVERY:
            return
        self._last = clock
        if now.shards is not None:
            typer.echo(f"{now.shards:,} shards written", err=True)
            return
        seconds, done = clock - self._began, now.units - self._first.units + 1
        left = (now.of - now.units) * seconds / done
        typer.echo(
            f"{now.units:,} of {now.of:,} units, {now.bytes / 1e6:,.0f} MB of text,"
            f" {now.bytes / 1e6 / seconds:,.1f} MB/s, about {_time(left)} left",
            err=True,
        )


def _time(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
