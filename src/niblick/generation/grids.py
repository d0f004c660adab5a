"""Finding the grid of a matrix again: integers times a step per row times a factor per column, a quarter octave apart.

Rate-distortion packing writes w = n * base * 2^((row + column) / 4) with whole n, row and column. The floats alone
give all of it back: powers of two among the n show the phase of every row and column modulo an octave, and the
number of factors of two in what is left shows the octaves. What is found is checked against every weight.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]

_BINS = 64  # of a quarter octave, to find where the powers of two lie
_SHARE = 0.2  # of the weights that must lie there: powers of two are the commonest codes
_NEAR = 0.02  # quarter octaves
_BITS = 8  # significant bits of a code
_EXACT = 2e-6  # of a weight; its own rounding and those of its factors
_ROUNDS = 4
_SAMPLE = 64  # rows or columns


def find_grid(weight: Floats) -> tuple[NDArray[np.int16], Floats, Floats] | None:
    """Codes (R, C), row steps (R,) and column factors (C,) that give `weight` exactly, or None.

    Columns are read off a sample of rows, rows off a sample of columns; then every weight has its say.
    """
    base = _base(weight[:8])
    if base is None:
        return None
    some = _logs(_spread(weight, 0), base)
    row_phase, column_phase = _phases(*some[:2])
    octaves = _octaves(some[2] - row_phase[:, None] - column_phase[None, :], some[3])
    if octaves is None:
        return None
    columns = column_phase + 4 * octaves[1]
    whole, sure, place, held = _logs(_spread(weight, 1), base)
    chosen = _spread(columns[None, :], 1)[0]
    rows = _commonest((whole - chosen[None, :]) % 4, sure, 1, 4)
    twos = _twos(place - rows[:, None] - chosen[None, :], held)
    return None if twos is None else _settled(weight, base, rows + 4 * _mode(twos, held, 1), columns)


def _spread(values: Any, axis: int) -> Any:
    """At most `_SAMPLE` evenly spread entries along an axis."""
    count = values.shape[axis]
    return np.take(values, np.unique(np.linspace(0, count - 1, _SAMPLE).astype(np.int64)), axis=axis)


def _logs(weight: Floats, base: float) -> tuple[Ints, Flags, Doubles, Flags]:
    """Magnitudes in quarter octaves from the base: to the nearest whole, which of those are sure; as they are, which
    weights are not zero."""
    held = weight != 0
    with np.errstate(divide="ignore"):
        place = np.where(held, 4 * np.log2(np.abs(weight).astype(np.float64)) - base, 0)
    whole = np.rint(place)
    return whole.astype(np.int64), held & (np.abs(place - whole) < _NEAR), place, held


def _power(quarters: Doubles | Ints) -> Doubles:
    found: Doubles = np.exp2(np.asarray(quarters, dtype=np.float64) / 4)
    return found


def _base(sample: Floats) -> float | None:
    """Where in a quarter octave, 0 to 1, the commonest magnitudes lie; None where they lie anywhere."""
    place = 4 * np.log2(np.abs(sample[sample != 0]).astype(np.float64))
    part = place % 1
    if not len(part):
        return None
    counts = np.bincount((part * _BINS).astype(np.int64) % _BINS, minlength=_BINS)
    best = int(np.argmax(counts + np.roll(counts, 1) + np.roll(counts, -1)))
    away = (part - (best + 0.5) / _BINS + 0.5) % 1 - 0.5
    close = np.abs(away) < 1.5 / _BINS
    if close.mean() < _SHARE:
        return None
    return float((best + 0.5) / _BINS + np.median(away[close]))


def _phases(phase: Ints, sure: Flags) -> tuple[Ints, Ints]:
    """Row and column phases modulo 4 whose sums are the sure entries'; from the row that knows most columns."""
    first = int(np.argmax(sure.sum(axis=1)))
    columns = np.where(sure[first], phase[first], 0)
    known = sure & sure[first]
    rows = np.zeros(len(phase), dtype=np.int64)
    for _ in range(2):
        rows = _commonest((phase - columns[None, :]) % 4, known, 1, 4)
        columns = _commonest((phase - rows[:, None]) % 4, sure, 0, 4)
        known = sure
    return rows, columns


def _commonest(values: Ints, where: Flags, axis: int, count: int) -> Ints:
    """The commonest of 0 .. count - 1 along an axis, among the marked entries."""
    found: Ints = np.argmax(np.stack([((values == v) & where).sum(axis=axis) for v in range(count)]), axis=0)
    return found


def _twos(place: Doubles, held: Flags) -> Ints | None:
    """Factors of two in numbers given by their quarter octaves; None where one is no short whole number times these."""
    mantissa, exponent = np.frexp(np.where(held, _power(place), 1))
    scaled = mantissa * (1 << _BITS)
    digits = np.rint(scaled).astype(np.int64)
    if np.abs(scaled - digits).max(initial=0) > 1e-4 * (1 << _BITS):
        return None
    found: Ints = exponent.astype(np.int64) - _BITS + np.log2(digits & -digits).astype(np.int64)
    return found


def _octaves(place: Doubles, held: Flags) -> tuple[Ints, Ints] | None:
    """Powers of two per row and column that leave mostly odd numbers."""
    twos = _twos(place, held)
    if twos is None or np.ptp(twos[held]) > 200:
        return None
    rows, columns = np.zeros(len(twos), dtype=np.int64), np.zeros(twos.shape[1], dtype=np.int64)
    for _ in range(_ROUNDS):
        columns = _mode(twos - rows[:, None], held, 0)
        rows = _mode(twos - columns[None, :], held, 1)
    return rows, columns


def _mode(values: Ints, where: Flags, axis: int) -> Ints:
    """The commonest marked value along an axis, 0 where none is marked."""
    values = values if axis == 0 else values.T
    where = where if axis == 0 else where.T
    low = int(values[where].min(initial=0))
    spread = int(values[where].max(initial=0)) - low + 1
    lines = np.broadcast_to(np.arange(values.shape[1]), values.shape)[where]
    counts = np.bincount(lines * spread + values[where] - low, minlength=values.shape[1] * spread)
    table = counts.reshape(-1, spread)
    found: Ints = np.where(table.any(axis=1), np.argmax(table, axis=1) + low, 0)
    return found


def _settled(
    weight: Floats, base: float, rows: Ints, columns: Ints
) -> tuple[NDArray[np.int16], Floats, Floats] | None:
    """Codes for these exponents, lowered by octaves until all are whole; None unless they give every weight back."""
    row_steps = _power(base + rows.astype(np.float64)).astype(np.float32)
    factors = _power(columns).astype(np.float32)
    for _ in range(_ROUNDS * 2):
        ratio = weight / row_steps[:, None] / factors[None, :]
        codes = np.rint(ratio)
        wrong = np.abs(ratio - codes) > _EXACT * np.abs(ratio)
        if not wrong.any():
            fits = bool(np.abs(codes).max(initial=0) <= 32767)
            return (codes.astype(np.int16), row_steps, factors) if fits else None
        bad_rows = wrong.mean(axis=1) > _SHARE
        row_steps[bad_rows] /= 2
        factors[wrong[~bad_rows].any(axis=0)] /= 2
    return None
