"""Which frequency table codes a symbol: by the magnitude that its place lets expect.

The expected magnitude of symbol (r, c) is the mean over the rows above it in its column, weighted
by the rows' steps, times its row's stored correction. It is quantized to half octaves; each half
octave and quantizer has one table for the whole file. Everything is computed in integers, so
encoder and decoder agree on any machine.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from niblick.codecs.fixed import fixed_power, fixed_powers

Ints = NDArray[np.int64]
DIGITS = 12
_PRIOR_ROWS = 3
# Half octaves of expected magnitude, 2^-5 .. 2^9, in units of 1/256.
THRESHOLDS = np.array([fixed_power(2 * j, 8) for j in range(-10, 19)], dtype=np.int64)
LEVELS = len(THRESHOLDS) + 1
SCALAR_KIND, SIDE_KIND = 2 * LEVELS, 3 * LEVELS
# Side information: plain numbers, exponents by their spread (four), row corrections.
NUMBER_KIND, EXPONENT_KIND, CORRECTION_KIND = SIDE_KIND, SIDE_KIND + 1, SIDE_KIND + 5
_SIDE_MEANS = (32 * 256, 192, 512, 1280, 3072, 128)


def table_means() -> Ints:
    """Expected magnitudes (in 1/256) that the tables of all kinds start from."""
    levels = [fixed_power(2 * j - 1, 8) for j in range(-10, 20)]
    return np.array([*levels * 3, *_SIDE_MEANS], dtype=np.int64)


def table_limits() -> Ints:
    """Largest magnitudes that the tables of all kinds hold."""
    return np.array([min(6 * int(mean) // 256 + 6, 1500) for mean in table_means()], dtype=np.int64)


class ColumnContext:
    """The running statistics of one tensor's columns, fed with its rows from above to below."""

    def __init__(
        self, *, mean: int, rows: Ints, columns: Ints, corrections: Ints, scalar: bool
    ) -> None:
        """Exponents (R,) and (C,) and corrections (R,), with the mean magnitude at exponents 0.

        `mean` is in quarter octaves as the exponents are, corrections in half octaves.
        """
        self.scale = fixed_powers(np.clip(rows, -40, 40), DIGITS)
        self.lift = fixed_powers(2 * corrections, DIGITS)
        start = fixed_powers(np.clip(mean - columns, -40, 60), DIGITS)
        self.sum = _PRIOR_ROWS * start
        self.seen = _PRIOR_ROWS
        self.base = SCALAR_KIND if scalar else 0

    def kinds(self, block: slice, quantizer: Ints) -> Ints:
        """The kinds (n, C) of the rows in `block` under their quantizers (n, C)."""
        column = self.sum // self.seen
        expected = column[None, :] * 256 // self.scale[block, None]
        expected = expected * self.lift[block, None] >> DIGITS
        level = np.searchsorted(THRESHOLDS, expected, side="right")
        kinds: Ints = level + self.base + quantizer * (LEVELS if self.base == 0 else 0)
        return kinds

    def learn(self, block: slice, symbols: Ints) -> None:
        """Take in the decoded symbols (n, C) of the rows in `block`."""
        sizes = np.minimum(np.abs(symbols), 1 << 20)
        self.sum = self.sum + (sizes * self.scale[block, None]).sum(axis=0)
        self.seen += symbols.shape[0]
