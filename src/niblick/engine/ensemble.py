"""The engine of an ensemble: its members' engines, whose probabilities are averaged."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from niblick.engine.base import Engine, Ids, Wanted

Floats = NDArray[np.float32]


class EnsembleEngine(Engine):
    """Each token goes to every engine of `engines`, which have the same slots and vocabulary; a
    logit is the logarithm of the mean probability.
    """

    def __init__(self, engines: Sequence[Engine]) -> None:
        first = engines[0]
        self._engines = engines
        self.name, self.vocab_size, self.slots = first.name, first.vocab_size, first.slots
        self.columns = min(engine.columns for engine in engines)
        self.state_bytes = sum(engine.state_bytes for engine in engines)
        self.weight_bytes = sum(engine.weight_bytes for engine in engines)

    def reset(self, slot: int, *, at: int = 0) -> None:
        """See `Engine.reset`."""
        for engine in self._engines:
            engine.reset(slot, at=at)

    def advance(self, slots: Ids, tokens: Ids, wanted: Wanted) -> None:
        """See `Engine.advance`."""
        for engine in self._engines:
            engine.advance(slots, tokens, wanted)

    def logits(self, slot: int) -> Floats:
        """See `Engine.logits`."""
        found: Floats = _mean([engine.logits(slot)[None] for engine in self._engines])[0]
        return found

    def rows(self, count: int) -> Floats:
        """See `Engine.rows`."""
        return _mean([engine.rows(count) for engine in self._engines])

    def nll(self, targets: NDArray[np.integer]) -> Floats:
        """See `Engine.nll`."""
        return -_log_mean([-engine.nll(targets) for engine in self._engines])


def _mean(logits: Sequence[Floats]) -> Floats:
    """ln of the mean probability (n, V) of each member's logits (n, V)."""
    rows = []
    for each in logits:
        top = each.max(axis=-1, keepdims=True)
        rows.append(each - (top + np.log(np.exp(each - top).sum(axis=-1, keepdims=True))))
    return _log_mean(rows)


def _log_mean(logs: Sequence[Floats]) -> Floats:
    """ln of the mean of what `logs` are the logarithms of."""
    stacked = np.stack(logs)
    top = stacked.max(axis=0)
    found: Floats = top + np.log(np.exp(stacked - top).mean(axis=0))
    return found
