"""Integer arithmetic behind every table that decoding depends on: powers of two in quarter octaves, and priors.

Only Python's exact integers and products of float64 numbers that are exactly rounded are used, so that encoder and
decoder agree on any machine; no logarithm, exponential or root of the floating-point library takes part.
"""

from __future__ import annotations

from functools import cache
from math import isqrt

import numpy as np
from numpy.typing import NDArray

QUARTERS = 4
_ONE = 1 << 60


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
    values, inverse = np.unique(quarters, return_inverse=True)
    table = np.array([power_of_two(int(value)) for value in values], dtype=np.float64)
    return table[inverse].reshape(quarters.shape)


@cache
def fixed_power(quarters: int, digits: int) -> int:
    """2^(quarters / 4) * 2^digits rounded down to an integer, at least 1."""
    whole, rest = divmod(quarters, QUARTERS)
    shift = 60 - whole - digits
    root = _quarter_roots()[rest]
    return max(root >> shift if shift >= 0 else root << -shift, 1)


def fixed_powers(quarters: NDArray[np.int64], digits: int) -> NDArray[np.int64]:
    """`fixed_power` of every element."""
    values, inverse = np.unique(quarters, return_inverse=True)
    table = np.array([fixed_power(int(value), digits) for value in values], dtype=np.int64)
    return table[inverse].reshape(quarters.shape)


def geometric(mean: int, digits: int, limit: int, weight: int) -> NDArray[np.int64]:
    """Counts of the symbols -limit..limit under a two-sided geometric law, each at least 1.

    `mean` is the expected magnitude with `digits` binary digits behind the point; `weight` is about the sum.
    """
    unit = 1 << digits
    root = isqrt((unit * unit + mean * mean) << 60)
    ratio = max(((root - (unit << 30)) << 30) // (mean << 30) << 0, 1)  # (sqrt(1 + m^2) - 1) / m, 30 digits
    one = 1 << 30
    law = [one]
    for _ in range(limit):
        law.append(law[-1] * ratio >> 30)
    total = law[0] + 2 * sum(law[1:])
    half = [max(weight * value // total, 1) for value in law]
    return np.array([*half[:0:-1], *half], dtype=np.int64)
