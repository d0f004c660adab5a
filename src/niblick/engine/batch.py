"""Many texts written at once on one engine: which slots are free, who reads, who draws.

Guarantees: a text's tokens are those that it gets alone, whatever else runs.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from niblick.engine.sampling import Sampling

# nb_sequence of native/engine.h
SEQUENCE = np.dtype(
    [(name, "<i4") for name in ("slot", "left", "end", "vocab", "top_k", "unused")]
    + [("temperature", "<f8"), ("top_p", "<f8"), ("seed", "<u8"), ("draw", "<u8")]
)
Sequences = NDArray[np.void]
"""Texts being written, (n,) of `SEQUENCE`: `left` tokens may still come; after `end` none do."""

NO_TOKEN = -1


def sequence(
    slot: int, sampling: Sampling, *, max_tokens: int, vocab: int, end: int | None = None
) -> Sequences:
    """The row (1,) of a text of up to `max_tokens` among the first `vocab` ids that ends after
    token `end`; its slot has read the prompt.
    """
    row = np.zeros(1, dtype=SEQUENCE)
    row[0] = (
        slot,
        max_tokens,
        NO_TOKEN if end is None else end,
        vocab,
        min(sampling.top_k, vocab),
        0,
        sampling.temperature,
        sampling.top_p,
        sampling.seed & (1 << 64) - 1,
        0,
    )
    return row


def sampling_of(row: np.void) -> Sampling:
    """How a row of `SEQUENCE` draws."""
    return Sampling(
        temperature=float(row["temperature"]),
        top_k=int(row["top_k"]),
        top_p=float(row["top_p"]),
        seed=int(row["seed"]),
    )


class Likelihoods(NamedTuple):
    """Nats of a token, as logarithms of probabilities, and the likeliest tokens in its place."""

    own: float
    others: list[tuple[int, float]]


def likelihoods(
    logits: NDArray[np.float32], targets: NDArray[np.integer], count: int
) -> list[Likelihoods]:
    """Of targets (n,) under logits (n, V), with the `count` likeliest tokens each, best first."""
    wide = logits.astype(np.float64)
    top = wide.max(axis=1, keepdims=True)
    logs = wide - top - np.log(np.exp(wide - top).sum(axis=1, keepdims=True))
    own = np.take_along_axis(logs, np.asarray(targets, dtype=np.int64)[:, None], axis=1)[:, 0]
    count = min(count, logs.shape[1])
    if not count:
        return [Likelihoods(value, []) for value in own.tolist()]
    best = np.argpartition(-logs, count - 1, axis=1)[:, :count]
    held = np.take_along_axis(logs, best, axis=1)
    order = np.lexsort((best, -held), axis=1)
    ids = np.take_along_axis(best, order, axis=1).tolist()
    values = np.take_along_axis(held, order, axis=1).tolist()
    return [
        Likelihoods(value, list(zip(row, nats, strict=True)))
        for value, row, nats in zip(own.tolist(), ids, values, strict=True)
    ]
