"""Tokenized documents on disk between reading and writing: runs, sorted by split and order.

A run is two files. `NAME.index` has a row for each document: its place in the order of its split
(128 bits of a hash of its content) and where its tokens begin; `NAME.tokens` has the tokens. The
documents of any stretch of the order are thus one stretch of each run, and putting a shard together
takes memory for a stretch, however many documents there are.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from niblick.errors import DataError
from niblick.files import write_atomically

ROW = np.dtype([("high", "<u8"), ("low", "<u8"), ("start", "<u8")])
BINS = 1 << 16  # equal stretches of the order
_SHIFT = 48
_GATHER = 4_000_000  # tokens that are sorted at once
Tokens = NDArray[np.uint16]


@dataclass(frozen=True)
class Run:
    """One run: its path without an ending, the documents of each split in it, in order, and the
    tokens of all of them.
    """

    path: str
    documents: tuple[int, ...]
    tokens: int

    def index(self) -> NDArray[np.void]:
        """A row for each document."""
        if not sum(self.documents):
            return np.empty(0, dtype=ROW)
        return np.memmap(f"{self.path}.index", dtype=ROW, mode="r")

    def rows(self, split: int) -> tuple[int, int]:
        """The first row of a split and the one after its last."""
        first = sum(self.documents[:split])
        return first, first + self.documents[split]

    def check(self) -> None:
        """`DataError` unless both files are there, of the right size."""
        sizes = {"index": ROW.itemsize * sum(self.documents), "tokens": 2 * self.tokens}
        for ending, size in sizes.items():
            path = Path(f"{self.path}.{ending}")
            if not path.exists() or path.stat().st_size != size:
                raise DataError(
                    f"{str(path)!r} is missing or cut off; copy it from where its part was made, or"
                    f" remove {str(path.parent.parent)!r} to begin again"
                )


def write_run(path: Path, documents: Sequence[Sequence[tuple[int, Tokens]]]) -> Run:
    """Write, for each split, documents of (place in its order, tokens)."""
    rows: list[tuple[int, int, int]] = []
    tokens: list[Tokens] = []
    at = 0
    for found in documents:
        for place, each in sorted(found, key=lambda document: document[0]):
            rows.append((place >> 64, place & 0xFFFFFFFFFFFFFFFF, at))
            tokens.append(each)
            at += len(each)
    chunks = (each.astype("<u2", copy=False).tobytes() for each in tokens)
    write_atomically(Path(f"{path}.tokens"), chunks, durable=False)
    write_atomically(Path(f"{path}.index"), (np.array(rows, dtype=ROW).tobytes(),), durable=False)
    return Run(str(path), tuple(map(len, documents)), at)


def count_bins(runs: Sequence[Run], split: int) -> NDArray[np.int64]:
    """The tokens of `split` in each of `BINS` stretches of its order."""
    counts = np.zeros(BINS, dtype=np.int64)
    for run in runs:
        first, last = run.rows(split)
        if first == last:
            continue
        index = run.index()
        bins = (index["high"][first:last] >> np.uint64(_SHIFT)).astype(np.int64)
        starts = np.append(index["start"][first : last + 1], run.tokens).astype(np.int64)
        sizes = np.diff(starts)[: last - first]
        counts += np.bincount(bins, weights=sizes, minlength=BINS).astype(np.int64)
    return counts


def read_in_order(
    runs: Sequence[Run], split: int, counts: NDArray[np.int64], start: int, end: int
) -> Iterator[Tokens]:
    """Tokens `start` to `end` of a split, all runs together, in the order of its documents;
    `counts` are those of `count_bins`.
    """
    ends = np.cumsum(counts)
    at = int(np.searchsorted(ends, start, side="right"))
    while start < end and at < BINS:
        before = int(ends[at] - counts[at])
        after = max(at + 1, int(np.searchsorted(ends, before + _GATHER, side="right")))
        tokens = _gather(runs, split, at, after)
        found = tokens[start - before : end - before]
        yield found
        start, at = start + len(found), after


def _gather(runs: Sequence[Run], split: int, low: int, high: int) -> Tokens:
    """The documents of the bins from `low` to before `high`, in order."""
    places: list[tuple[int, int, int, int, int]] = []
    parts: list[Tokens] = []
    for run in runs:
        index, (first, last) = run.index(), run.rows(split)
        if first == last:
            continue
        keys = index["high"]
        begin = bisect_left(keys, low << _SHIFT, first, last)
        stop = last if high >= BINS else bisect_left(keys, high << _SHIFT, begin, last)
        if begin == stop:
            continue
        rows = np.array(index[begin : stop + 1])
        from_, total = int(rows["start"][0]), run.tokens
        bounds = [int(start) - from_ for start in rows["start"]]
        if len(bounds) == stop - begin:
            bounds.append(total - from_)
        keyed = zip(rows["high"].tolist(), rows["low"].tolist(), bounds, bounds[1:], strict=False)
        places += [(*row, len(parts)) for row in keyed]
        count = bounds[stop - begin]
        parts.append(np.fromfile(f"{run.path}.tokens", "<u2", count=count, offset=2 * from_))
    places.sort()
    chosen = [parts[part][start:end] for _, _, start, end, part in places]
    return np.concatenate(chosen) if chosen else np.empty(0, dtype=np.uint16)
