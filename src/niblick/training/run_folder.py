"""The run directory: recipe.toml, environment.json, metrics.jsonl and checkpoints/ (design.md,
"Interfaces").

Guarantees: one writer at a time (`claimed`); files appear whole; on resuming, metrics hold no line
from beyond the checkpoint; an error in writing names the file and leaves earlier checkpoints alone.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from io import RawIOBase
from itertools import count
from pathlib import Path
from typing import Any

from niblick.artifact.checkpoint import FINAL_FILE
from niblick.errors import CapacityError, NiblickError, TrainingError
from niblick.files import locked, read_json, write_atomically
from niblick.recipe import Recipe, recipe_to_toml

LOCK_FILE = ".lock"
Row = dict[str, Any]  # one line of metrics.jsonl: what was measured at a step
_held: set[tuple[int, Path]] = set()


def claimed(path: Path) -> AbstractContextManager[Path]:
    """Be the only one who writes into the run directory `path` for the block; it is created where
    it is missing, and removed again where the block fails and leaves it empty.

    `TrainingError` at once where another process, or another thread, is the writer; a thread that
    is may claim again. What a process that died had claimed is free.
    """
    return _claimed(path, created=False)


def claimed_new(parent: Path, name: str) -> AbstractContextManager[Path]:
    """Create and claim the first of NAME-1, NAME-2, ... that is free in `parent`; two processes
    that do so together get two.
    """
    places = (parent / f"{name}-{number}" for number in count(1))
    return _claimed(next(path for path in places if _created(path)), created=True)


@contextmanager
def _claimed(path: Path, *, created: bool) -> Iterator[Path]:
    key = threading.get_ident(), path.resolve()
    if key in _held:
        yield path
        return
    created = _created(path) or created
    with ExitStack() as lock:
        with explained(path):
            try:
                lock.enter_context(locked(path / LOCK_FILE, wait=False))
            except BlockingIOError:
                raise TrainingError(
                    f"{str(path)!r} is in use: another process trains or packs there; wait for it"
                    " to end, or choose another --out"
                ) from None
        _held.add(key)
        try:
            yield path
        except BaseException:
            if created:
                _remove_empty(path)
            raise
        finally:
            _held.remove(key)


def _created(path: Path) -> bool:
    with explained(path):
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            return False
    return True


def _remove_empty(path: Path) -> None:
    with suppress(OSError):
        if [entry.name for entry in path.iterdir()] == [LOCK_FILE]:
            (path / LOCK_FILE).unlink()
            path.rmdir()


class RunFolder:
    """Paths and small files of one run; `track` is told each row that `log` has written."""

    def __init__(self, path: Path, track: Callable[[Row], None] | None = None) -> None:
        self.path, self._track = path, track
        self.checkpoints = path / "checkpoints"
        self._metrics: RawIOBase | None = None

    def begin(self, recipe: Recipe, environment: dict[str, Any]) -> None:
        """Create the folder for a new run; `TrainingError` where one was already trained in it."""
        if self.checkpoints.is_dir() and any(self.checkpoints.glob("step-*")):
            raise TrainingError(
                f"{str(self.path)!r} holds a run; continue it with --resume or choose another --out"
            )
        with explained(self.path):
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            (self.path / "environment.json").unlink(missing_ok=True)
            self.note(**environment)
            (self.path / "metrics.jsonl").unlink(missing_ok=True)
            write_atomically(self.path / "recipe.toml", (recipe_to_toml(recipe).encode(),))

    def environment(self) -> dict[str, Any]:
        """What environment.json holds; nothing where there is none."""
        try:
            return read_json(self.path / "environment.json")
        except NiblickError:
            return {}

    def note(self, **facts: Any) -> None:
        """Add facts to environment.json."""
        text = json.dumps(self.environment() | facts, indent=1)
        with explained(self.path):
            write_atomically(self.path / "environment.json", (text.encode() + b"\n",))

    @property
    def finished(self) -> bool:
        """Whether training has come to its end: its weights are kept beside the checkpoints."""
        return (self.checkpoints / FINAL_FILE).exists()

    def check_resumable(self) -> None:
        """`TrainingError` where no run was ever begun."""
        if not (self.path / "recipe.toml").is_file():
            raise TrainingError(f"nothing to resume in {str(self.path)!r}: it holds no recipe.toml")
        with explained(self.path):
            self.checkpoints.mkdir(exist_ok=True)

    def check_space(self, needed: int) -> None:
        """`CapacityError` where the disk has fewer than `needed` bytes left for the run's files."""
        with explained(self.path):
            free = shutil.disk_usage(self.path).free
        if free < needed:
            raise CapacityError(
                f"the disk of {str(self.path)!r} has {free:,} bytes left; checkpoints and artifact"
                f" of this run take about {needed:,}"
            )

    def log(self, row: Row) -> None:
        """Append one line to metrics.jsonl, at once."""
        with explained(self.path / "metrics.jsonl"):
            if self._metrics is None:
                self._metrics = (self.path / "metrics.jsonl").open("ab", buffering=0)
            line = json.dumps(row).encode() + b"\n"
            if self._metrics.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if self._track is not None:
            self._track(row)

    def rewind(self, step: int) -> None:
        """Drop metrics of later steps, and a last line that was cut off."""
        path = self.path / "metrics.jsonl"
        if not path.is_file():
            return
        with explained(path):
            lines = path.read_text("utf-8", errors="replace").splitlines()
            write_atomically(
                path, (f"{line}\n".encode() for line in lines if _step_of(line) <= step)
            )

    def close(self) -> None:
        """Close the metrics file, which holds nothing back."""
        if self._metrics is not None:
            with suppress(OSError):
                self._metrics.close()
            self._metrics = None


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn an operating-system error inside the block into one clear `TrainingError` about
    `path`.
    """
    try:
        yield
    except OSError as error:
        raise TrainingError(f"cannot write {str(path)!r}: {error.strerror or error}") from None


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
