"""Calibration: token batches of training data handed in by the caller, and the time spent reading them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from time import perf_counter

from torch import Tensor


@dataclass
class Calibration:
    """Batches of training tokens, each (B, T) int64, drawn once; `seconds` is what reading and using them took."""

    batches: Iterable[Tensor]
    seconds: float = 0.0
    _drawn: list[Tensor] = field(default_factory=list, repr=False)

    def __iter__(self) -> Iterator[Tensor]:
        """The batches, kept so that every pass sees the same ones."""
        if not self._drawn:
            started = perf_counter()
            self._drawn = list(self.batches)
            self.seconds += perf_counter() - started
        return iter(self._drawn)
