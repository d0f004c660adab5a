"""Integer arithmetic behind all tables of decoding: powers of two in quarter octaves, and priors.

Only Python's exact integers and products of float64 numbers that are exactly rounded are used, so
that encoder and decoder agree on any machine; no logarithm, exponential or root of the
floating-point library takes part.
"""

from __future__ import annotations

from functools import cache
from math import isqrt

import numpy as np
from numpy.typing import NDArray

QUARTERS = 4
_ONE = 1 << 60  # of numbers with 60 binary digits behind the point


@cache
def _quarter_roots() -> tuple[int, int, int, int]:
    """2^0, 2^(1/4), 2^(1/2), 2^(3/4) with 60 binary digits behind the point, rounded down."""
    half = isqrt(2 * _ONE * _ONE)
    quarter = isqrt(half * _ONE)
    return _ONE, quarter, half, (half * quarter) >> 60


@cache
def power_of_two(quarters: int) -> float:
    """2^(quarters / 4) as a float64: one integer rounded once, scaled by an exact power of two."""
    whole, rest = divmod(quarters, QUARTERS)
    return float(_quarter_roots()[rest]) * 2.0 ** (whole - 60)


def powers(quarters: NDArray[np.int64]) -> NDArray[np.float64]:
    """`power_of_two` of every element."""
    low, high = _range(quarters)
    found: NDArray[np.float64] = _powers(low, high)[quarters - low]
    return found


def _range(quarters: NDArray[np.int64]) -> tuple[int, int]:
    return int(quarters.min(initial=0)), int(quarters.max(initial=0))


@cache
def _powers(low: int, high: int) -> NDArray[np.float64]:
    return np.array([power_of_two(value) for value in range(low, high + 1)])


@cache
def fixed_power(quarters: int, digits: int) -> int:
    """2^(quarters / 4) * 2^digits rounded down to an integer, at least 1."""
    whole, rest = divmod(quarters, QUARTERS)
    shift = 60 - whole - digits
    root = _quarter_roots()[rest]
    return max(root >> shift if shift >= 0 else root << -shift, 1)


def fixed_powers(quarters: NDArray[np.int64], digits: int) -> NDArray[np.int64]:
    """`fixed_power` of every element."""
    low, high = _range(quarters)
    found: NDArray[np.int64] = _fixed_powers(low, high, digits)[quarters - low]
    return found


@cache
def _fixed_powers(low: int, high: int, digits: int) -> NDArray[np.int64]:
    values = [fixed_power(value, digits) for value in range(low, high + 1)]
    return np.array(values, dtype=np.int64)


def prior(mean: int, limit: int, weight: int) -> NDArray[np.int64]:
    """Counts of the symbols -limit..limit with expected magnitude `mean` / 256.

    Each is at least 1; they sum to about `weight`. Small magnitudes follow a two-sided geometric
    law; from 1 on, three quarters are Gaussian.
    """
    laws = [(1, _geometric(mean, limit))]
    if mean >= 256:
        laws.append((3, _gaussian(mean, limit)))
    whole = sum(parts for parts, _ in laws)
    half = [0] * (limit + 1)
    for parts, law in laws:
        total, share = whole * (law[0] + 2 * sum(law[1:])), weight * parts
        half = [count + share * value // total for count, value in zip(half, law, strict=True)]
    half = [max(value, 1) for value in half]
    return np.array([*half[:0:-1], *half], dtype=np.int64)


def _geometric(mean: int, limit: int) -> list[int]:
    """r^k with r = (sqrt(1 + m^2) - 1) / m, scaled by 2^30."""
    root = isqrt(((1 << 16) + mean * mean) << 60)
    ratio = ((root - (1 << 38)) << 30) // (mean << 30)
    law = [1 << 30]
    for _ in range(limit):
        law.append(law[-1] * ratio >> 30)
    return law


def _gaussian(mean: int, limit: int) -> list[int]:
    """exp(-k^2 / (pi m^2)), whose magnitudes have mean m, scaled by 2^60."""
    exponent = _ONE * (1 << 16) * 113 // (355 * mean * mean)  # 1 / (pi m^2)
    ratio, term = _ONE, _ONE
    for n in range(1, 24):
        term = -term * exponent // (n * _ONE)
        ratio += term
    law, factor = [_ONE], ratio
    for _ in range(limit):
        law.append(law[-1] * factor >> 60)
        factor = (factor * ratio >> 60) * ratio >> 60
    return law
