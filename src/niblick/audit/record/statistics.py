"""Is an improvement over a stated record large enough and certain enough: 0.005 nats per token at p
< 0.01.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

LEAST_NATS, LARGEST_P = 0.005, 0.01


@dataclass(frozen=True, kw_only=True)
class Significance:
    """A one-sided one-sample t test of per-seed losses against a baseline; nats per token, lower is
    better.
    """

    seeds: int
    mean: float
    deviation: float
    improvement: float
    p: float

    @property
    def holds(self) -> bool:
        """Whether the improvement exceeds 0.005 nats at p < 0.01, the test being of that very
        margin.
        """
        return self.improvement >= LEAST_NATS and self.p < LARGEST_P


def significance(losses: Sequence[float], baseline: float) -> Significance | None:
    """Tests "mean loss < baseline - 0.005" (nats per token); None for fewer than two seeds."""
    count = len(losses)
    if count < 2:
        return None
    mean = math.fsum(losses) / count
    deviation = math.sqrt(math.fsum((loss - mean) ** 2 for loss in losses) / (count - 1))
    margin = baseline - LEAST_NATS - mean
    if deviation == 0.0:
        p = 0.0 if margin > 0 else 1.0
    else:
        p = upper_tail(margin / (deviation / math.sqrt(count)), count - 1)
    return Significance(
        seeds=count, mean=mean, deviation=deviation, improvement=baseline - mean, p=p
    )


def upper_tail(t: float, freedom: int) -> float:
    """P(T > t) of Student's distribution with a whole number of degrees of freedom, in closed
    form.
    """
    angle = math.atan(abs(t) / math.sqrt(freedom))
    cosine, sine = math.cos(angle), math.sin(angle)
    odd = freedom % 2
    term, total = (cosine, 0.0) if odd else (1.0, 0.0)
    for k in range(2 + odd, freedom + 1, 2):  # finite series, Abramowitz & Stegun 26.7.3-4
        total += term
        term *= cosine * cosine * (k - 1) / k
    if odd:
        within = 2 / math.pi * (angle + sine * total)
    else:
        within = sine * total
    tail = max(0.0, (1.0 - within) / 2)
    return tail if t >= 0 else 1.0 - tail
