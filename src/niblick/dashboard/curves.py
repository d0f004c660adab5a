"""The columns of a metrics.jsonl, read on from where the last look ended.

Everything read here may come from somebody else: only plain finite numbers are taken, and a line
that is cut off waits for its end.
"""

from __future__ import annotations

import json
import math
import os
from array import array
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from niblick.files import finite

Points = dict[str, list[float | None]]

POINTS = 600  # of a curve, at most
_CHUNK = 1 << 26  # bytes read at one look
_COLUMNS = 32
_MISSING = float("nan")


class Columns:
    """Rows of numbers as one array for each name; what a row has not is NaN."""

    def __init__(self) -> None:
        self.length = 0
        self._columns: dict[str, array[float]] = {}

    def append(self, row: dict[str, float]) -> None:
        """Add one row."""
        for name in row:
            if name not in self._columns and len(self._columns) < _COLUMNS:
                self._columns[name] = array("d", [_MISSING]) * self.length
        for name, column in self._columns.items():
            column.append(row.get(name, _MISSING))
        self.length += 1

    def last(self, name: str) -> float | None:
        """The newest value under a name."""
        column = self._columns.get(name)
        return None if not column or math.isnan(column[-1]) else column[-1]

    def points(self) -> Points:
        """Every column in at most `POINTS` points, each the mean of its neighbours."""
        edges = np.unique(np.linspace(0, self.length, POINTS + 1).astype(int))[:-1]
        return {
            name: [value if math.isfinite(value) else None for value in _means(column, edges)]
            for name, column in self._columns.items()
        }


def _means(column: array[float], edges: NDArray[np.int64]) -> list[float]:
    if not len(edges):
        return []
    values = np.array(column)
    known = ~np.isnan(values)
    with np.errstate(over="ignore"):
        sums = np.add.reduceat(np.where(known, values, 0.0), edges)
    counts = np.add.reduceat(known.astype(float), edges)
    means: list[float] = np.where(counts > 0, sums / np.maximum(counts, 1), _MISSING).tolist()
    return means


class Metrics:
    """A run's metrics file as it grows; one that is replaced, as on resuming, is read anew."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._reset()

    def _reset(self) -> None:
        self.training, self.validation = Columns(), Columns()
        self._offset, self._file = 0, (0, 0)

    @property
    def revision(self) -> str:
        """Another text whenever there is something new."""
        return f"{self._file[1]:x}-{self._offset}"

    def refresh(self) -> None:
        """Take in what was written since the last call."""
        if not is_regular(self.path):
            return
        try:
            with self.path.open("rb") as file:
                found = os.fstat(file.fileno())
                if self._file != (found.st_dev, found.st_ino) or found.st_size < self._offset:
                    self._reset()
                    self._file = found.st_dev, found.st_ino
                file.seek(self._offset)
                data = file.read(_CHUNK)
        except OSError:
            return
        whole = data[: data.rfind(b"\n") + 1]
        if not whole and len(data) == _CHUNK:
            whole = data  # one line longer than any of ours
        self._offset += len(whole)
        for line in whole.splitlines():
            row = _numbers(line)
            if "loss" in row:
                self.training.append(row)
            elif "validation_bpb" in row:
                self.validation.append(row)


def _numbers(line: bytes) -> dict[str, float]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(row, dict):
        return {}
    found = ((name[:40], finite(value)) for name, value in row.items())
    return {name: value for name, value in found if value is not None}


def is_regular(path: Path) -> bool:
    """Whether a path is a file: no link, which leads anywhere, and no pipe, which may not end."""
    return path.is_file() and not path.is_symlink()
