"""Rows of whole documents: every pass packs all documents anew, in an order of its own.

A row begins with the next document of a random order and takes, of those that follow, the ones that
fill it best. What is left of it then holds the head of a document that comes later, whole. So every
document is seen once a pass with all of its own beginning, except that one longer than a row is
cut. The rows are a function of the seed and the pass; all tokens are held in memory.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from niblick.data.shards import read_tokens
from niblick.errors import DataError

_WINDOW = 256  # documents among which the one that fits best is looked for
_STREAM = 3  # of random numbers, apart from the sampler's
Tokens = NDArray[np.int64]
Span = tuple[int, int]  # size and first token


class DocumentRows:
    """Draws batches of `batch` rows of `length` + 1 tokens."""

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
        parts = [read_tokens(path, 0, size) for path, size in zip(shards, sizes, strict=True)]
        self._tokens = np.concatenate(parts).astype(np.int64)
        if vocab_size is not None and int(self._tokens.max()) >= vocab_size:
            raise DataError(
                f"the training shards hold token {int(self._tokens.max())}, but the vocabulary has"
                f" {vocab_size}"
            )
        self._length, self._batch, self._seed = length, batch, seed
        self._spans = _spans(self._tokens, length + 1, bos_id)
        self.batches = self.passes = 0
        self._rows: Iterator[Tokens] = iter(())
        self.pass_blocks = len(self._tokens) // (length + 1)

    def draw(self) -> Tokens:
        """The next batch (batch, length + 1); where a pass ends inside it, the next follows."""
        rows = [self._next() for _ in range(self._batch)]
        self.batches += 1
        return np.stack(rows)

    def skip(self, batches: int) -> None:
        """Draw and forget `batches` batches."""
        for _ in range(batches):
            self.draw()

    def _next(self) -> Tokens:
        while (row := next(self._rows, None)) is None:
            self._rows = self._pack(self.passes)
        return row

    def _pack(self, number: int) -> Iterator[Tokens]:
        """The rows of one pass: each begins with the next document of a random order."""
        key = [self._seed & (2**64 - 1), _STREAM << 56 | number]
        order = np.random.Generator(np.random.Philox(key=key)).permutation(len(self._spans))
        waiting = [self._spans[i] for i in order]
        near: list[Span] = []  # by size
        while waiting or near:
            while waiting and len(near) < min(_WINDOW, len(order) // 8):
                insort(near, waiting.pop())
            yield self._row(near, waiting.pop() if waiting else near.pop())
        self.passes += 1

    def _row(self, near: list[Span], first: Span) -> Tokens:
        """A row that begins with `first` and takes from `near` what fits."""
        row, filled, (size, start) = np.empty(self._length + 1, np.int64), 0, first
        while True:
            size = min(size, len(row) - filled)
            row[filled : filled + size] = self._tokens[start : start + size]
            filled += size
            if filled == len(row):
                return row
            room = len(row) - filled
            at = bisect_right(near, (room, len(self._tokens)))
            size, start = near.pop(at - 1) if at else near[0] if near else (room, 0)


def _spans(tokens: Tokens, longest: int, bos_id: int) -> list[Span]:
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
