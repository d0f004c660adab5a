"""Rows of whole documents: every pass packs all documents anew, in an order of its own.

A row begins with the first document of a random order that has not come yet and takes, of those
that follow, the ones that fill it best. What is left of it holds the head of one that does not fit
and comes later, whole. So every document is seen once a pass with all of its own beginning; one
longer than a row is cut. The rows are a function of the seed and the pass. All tokens are held in
memory.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from niblick.data.shards import read_tokens
from niblick.errors import DataError

MAX_TOKENS = 1 << 28
_WINDOW = 256  # documents among which the one that fits best is looked for
_STREAM = 3  # of random numbers, apart from the sampler's
Tokens = NDArray[np.int64]
Span = tuple[int, int]  # size and first token


class DocumentRows:
    """Draws batches of `batch` rows of `length` + 1 tokens; `bos_id` begins a document."""

    def __init__(
        self,
        shards: Sequence[Path],
        sizes: Sequence[int],
        *,
        length: int,
        batch: int,
        seed: int,
        bos_id: int,
        vocab_size: int | None = None,
    ) -> None:
        if sum(sizes) > MAX_TOKENS:
            raise DataError(
                f"rows of whole documents are packed in memory: at most {MAX_TOKENS:,} tokens, not"
                f" {sum(sizes):,}; set data.rows = text"
            )
        parts = [read_tokens(path, 0, size) for path, size in zip(shards, sizes, strict=True)]
        self._tokens = np.concatenate(parts)
        largest = int(self._tokens.max(initial=0))
        if vocab_size is not None and largest >= vocab_size:
            raise DataError(
                f"the training shards hold token {largest}, but the vocabulary has {vocab_size}"
            )
        self._length, self._batch, self._seed = length, batch, seed
        self._spans = _spans(self._tokens, length + 1, bos_id)
        self._rows: Iterator[Tokens] = iter(())
        self.passes = 0
        self.pass_blocks = len(self._tokens) // (length + 1)

    def draw(self) -> Tokens:
        """The next batch (batch, length + 1); where a pass ends inside it, the next follows."""
        return np.stack([self._next() for _ in range(self._batch)])

    def skip(self, batches: int) -> None:
        """Draw and forget `batches` batches."""
        for _ in range(batches):
            self.draw()

    def _next(self) -> Tokens:
        while (row := next(self._rows, None)) is None:
            self._rows = self._pack(self.passes)
        return row

    def _pack(self, number: int) -> Iterator[Tokens]:
        """The rows of one pass."""
        key = [self._seed & (2**64 - 1), _STREAM << 56 | number]
        order = np.random.Generator(np.random.Philox(key=key)).permutation(len(self._spans))
        spans = [self._spans[i] for i in order]
        near, coming = sorted(spans[:_WINDOW]), iter(spans[_WINDOW:])
        used: set[Span] = set()
        for first in spans:
            if first not in used:
                yield self._row(first, near, coming, used)
        self.passes += 1

    def _row(
        self, first: Span, near: list[Span], coming: Iterator[Span], used: set[Span]
    ) -> Tokens:
        """A row of `first` and what fits best of `near`, which is sorted and is filled up again
        from `coming`.
        """
        row, filled, at = np.empty(self._length + 1, np.int64), 0, bisect_left(near, first)
        while at >= 0 and filled < len(row):
            size, start = span = near.pop(at)
            used.add(span)
            row[filled : filled + size] = self._tokens[start : start + size]
            filled += size
            for new in islice(coming, 1):
                insort(near, new)
            at = bisect_right(near, (len(row) - filled, len(self._tokens))) - 1
        start = near[0][1] if near else 0
        row[filled:] = self._tokens[start : start + len(row) - filled]
        return row


def _spans(tokens: NDArray[np.uint16], longest: int, bos_id: int) -> list[Span]:
    """Each document, or its pieces of at most `longest` tokens, which share one token so that each
    is a target.
    """
    starts = np.flatnonzero(tokens == bos_id).tolist()
    starts = starts if starts and starts[0] == 0 else [0, *starts]
    found = []
    for start, stop in zip(starts, [*starts[1:], len(tokens)], strict=True):
        cuts = range(start, max(stop - 1, start + 1), longest - 1)
        found += [(min(longest, stop - cut), cut) for cut in cuts]
    return found
