"""Which tokens are scored by which forward pass: pure functions of lengths, without torch.

A stream of n tokens has n - 1 predictions; prediction i reads token i and scores token i + 1, so
every token but the first is scored exactly once. All functions here speak of predictions 0 .. n-2.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Window:
    """One forward pass over inputs [start, end), of which the predictions [first, end) are
    scored.
    """

    start: int
    end: int
    first: int

    @property
    def length(self) -> int:
        """Number of inputs."""
        return self.end - self.start

    @property
    def shape(self) -> tuple[int, int]:
        """What windows must share to be computed in one batch: inputs, and inputs that only give
        context.
        """
        return self.end - self.start, self.first - self.start


def sliding_windows(predictions: int, context: int, stride: int) -> Iterator[Window]:
    """Windows of `context` inputs, `stride` apart: the first scores all of its own, later ones
    their last.

    Every later window starts at a multiple of `stride`; the last may be shorter and scores what is
    left. Each scored prediction but those of the first window sees at least context - stride
    earlier inputs.
    """
    done = min(context, predictions)
    if done > 0:
        yield Window(0, done, 0)
    start = stride
    while done < predictions:
        end = min(start + context, predictions)
        yield Window(start, end, done)
        start, done = start + stride, end


def chunked_windows(predictions: int, context: int) -> Iterator[Window]:
    """Windows that do not overlap; the last may be shorter."""
    return sliding_windows(predictions, context, context)


def document_windows(tokens: NDArray[np.integer], bos_id: int) -> list[Window]:
    """One window per document: it ends with the prediction of the next BOS, which the document's
    state scores.

    Tokens before the first BOS, if any, count as a document.
    """
    predictions = len(tokens) - 1
    starts = np.flatnonzero(np.asarray(tokens[:-1]) == bos_id).tolist() if predictions > 0 else []
    if predictions > 0 and (not starts or starts[0] != 0):
        starts = [0, *starts]
    ends = [*starts[1:], predictions]
    return [
        Window(start, end, start) for start, end in zip(starts, ends, strict=True) if start < end
    ]


def equal_batches(windows: Iterable[Window], batch_tokens: int) -> Iterator[tuple[Window, ...]]:
    """Consecutive windows of one shape, as many to a batch as `batch_tokens` inputs allow (at least
    one).
    """
    for (length, _), group in groupby(windows, key=lambda window: window.shape):
        rows = max(1, batch_tokens // length)
        members = list(group)
        for i in range(0, len(members), rows):
            yield tuple(members[i : i + rows])


def padded_batches(
    windows: Sequence[Window], batch_tokens: int, rows: int | None = None
) -> list[tuple[Window, ...]]:
    """Windows of similar length together, at most `batch_tokens` inputs a batch, padding counted.

    A window longer than that stands alone; `rows` bounds the windows of a batch.
    """
    batches: list[list[Window]] = []
    for window in sorted(windows, key=lambda w: (w.length, w.start)):
        room = batches and (len(batches[-1]) + 1) * window.length <= batch_tokens
        if room and (rows is None or len(batches[-1]) < rows):
            batches[-1].append(window)
        else:
            batches.append([window])
    return [tuple(batch) for batch in batches]


def pieces(predictions: int, size: int) -> list[tuple[int, int]]:
    """[start, end) cuts of a stream, each of `size` predictions but the last."""
    return [(start, min(start + size, predictions)) for start in range(0, predictions, size)]


def share(count: int, rank: int, size: int) -> range:
    """The contiguous part of `count` items that process `rank` of `size` takes; shares differ by
    one at most.
    """
    return range(count * rank // size, count * (rank + 1) // size)
