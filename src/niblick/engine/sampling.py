"""From logits to the next token: greedy, temperature, top-k and top-p, reproducible from a seed.

The rule is defined once, here, in float64; a faster engine must follow it. The n-th draw of a seed
is the n-th output of SplitMix64 started from that seed, so a draw depends on nothing but the seed
and its number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from operator import index

import numpy as np
from numpy.typing import NDArray

from niblick.errors import NiblickError

_MASK = (1 << 64) - 1
_STEP = 0x9E3779B97F4A7C15


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How to choose: `temperature` 0 is greedy; `top_k` 0 and `top_p` 1 switch those filters off.

    Raises `NiblickError` for values out of range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise NiblickError(
                f"temperature must be a number >= 0 (0 is greedy), not {self.temperature}"
            )
        for name in ("top_k", "seed"):  # whole numbers of numpy too
            try:
                object.__setattr__(self, name, index(getattr(self, name)))
            except TypeError:
                raise NiblickError(
                    f"{name.replace('_', '-')} must be a whole number, not {getattr(self, name)!r}"
                ) from None
        if self.top_k < 0:
            raise NiblickError(f"top-k must be >= 0 (0 switches it off), not {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise NiblickError(
                f"top-p must be above 0 and at most 1 (1 switches it off), not {self.top_p}"
            )


GREEDY = Sampling(temperature=0.0)


def uniform(seed: int, draw: int) -> float:
    """The `draw`-th number (from 0) of `seed`'s stream, in [0, 1) with 53 random bits
    (SplitMix64).
    """
    z = (seed + (draw + 1) * _STEP) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return float((z ^ (z >> 31)) >> 11) * 2.0**-53


def choose(logits: NDArray[np.float32], sampling: Sampling, draw: int) -> int:
    """The next token for logits (V,): the first best one when greedy, else a draw in order of token
    id.

    Temperature comes first, then the `top_k` most likely, then the fewest of those that hold
    `top_p` of their probability; equal tokens count in order of id.
    """
    if sampling.temperature == 0:
        return int(np.argmax(logits))
    weights = _weights(logits, sampling)
    total = np.cumsum(weights)
    found = int(np.searchsorted(total, uniform(sampling.seed, draw) * total[-1], side="right"))
    return min(found, int(np.flatnonzero(weights)[-1]))


def _weights(logits: NDArray[np.float32], sampling: Sampling) -> NDArray[np.float64]:
    """Unnormalised probabilities, zero for the tokens that the filters drop."""
    scaled = (logits.astype(np.float64) - float(logits.max())) / sampling.temperature
    weights = np.exp(scaled)
    if sampling.top_k == 0 and sampling.top_p == 1:
        return weights
    order = np.argsort(-weights, kind="stable")
    if 0 < sampling.top_k < len(order):
        order = order[: sampling.top_k]
    held = np.cumsum(weights[order])
    kept = order[: int(np.searchsorted(held, sampling.top_p * held[-1], side="left")) + 1]
    result = np.zeros_like(weights)
    result[kept] = weights[kept]
    return result
