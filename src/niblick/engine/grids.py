"""Finding the grid of a matrix again: integers times a step per row times a factor per column, a
quarter octave apart.

Rate-distortion packing writes w = n * base * 2^((row + column) / 4) with whole n, row and column.
The floats alone give all of it back. Powers of two among the n are common enough to show the base;
a weight divided by the right quarter of an octave is a short binary number, which shows the phases;
and the factors of two in what is left show the octaves. What is found is checked against every
weight.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]

_BINS = 64  # of a quarter octave, to find where the powers of two lie
_SHARE = 0.2  # of the weights that must lie there: powers of two are the commonest codes
_BITS = 12  # significant bits of a code
_SHORT = 0.01  # how far from whole so many bits may be
_EXACT = 2e-6  # of a weight; its own rounding and those of its factors
_ROUNDS = 4
_SAMPLE = 64  # rows or columns
_ENOUGH = 12  # weights to read an exponent off


def find_base(samples: Iterable[Floats]) -> float | None:
    """Where in a quarter octave, 0 to 1, the grid of a model lies: as its clearest matrix shows;
    None if none does.
    """
    shares = [_share(sample) for sample in samples]
    best, base = max(shares, default=(0.0, 0.0))
    return base if best >= _SHARE else None


def find_grid(
    weight: Floats, base: float | None = None
) -> tuple[NDArray[np.int32], Floats, Floats] | None:
    """Codes (R, C), row steps (R,) and column factors (C,) that give `weight` exactly, or None.

    Columns are read off a sample of rows, rows off a sample of columns; then every weight has its
    say.
    """
    if base is None:
        base = find_base([weight[:8]])
    if base is None or weight.size < _SAMPLE:
        return None
    some = _spread(weight, 0)
    phase, sure = _phase(some, base)
    if sure.sum() < _SHARE * (some != 0).sum():
        return None
    row_phase, column_phase = _phases(phase, sure)
    columns = column_phase + 4 * _octaves(_shrunk(some, base, row_phase, column_phase))
    known = sure.sum(axis=0) >= _ENOUGH
    strong = _spread(np.flatnonzero(known) if known.any() else np.arange(len(columns)), 0)
    rows, count = _exponents(weight[:, strong], base, columns[strong])
    columns[~known] = _exponents(weight[:, ~known].T, base, rows)[0]
    weak = count < _ENOUGH
    rows[weak] = _exponents(weight[weak], base, columns)[0]
    return settle(
        weight, _power(base + rows).astype(np.float32), _power(columns).astype(np.float32)
    )


def _exponents(weight: Floats, base: float, columns: Ints) -> tuple[Ints, Ints]:
    """Exponents of the rows where those of the columns are known, and how many weights each rests
    on.
    """
    phase, sure = _phase(weight, base)
    rows = _commonest((phase - columns[None, :]) % 4, sure, 1, 4)
    twos, clear = _twos(_shrunk(weight, base, rows, columns))
    return rows + 4 * _mode(twos, clear, 1), sure.sum(axis=1)


def _spread(values: Any, axis: int) -> Any:
    """At most `_SAMPLE` evenly spread entries along an axis."""
    count = values.shape[axis]
    return np.take(
        values, np.unique(np.linspace(0, count - 1, _SAMPLE).astype(np.int64)), axis=axis
    )


def _shrunk(weight: Floats, base: float, rows: Ints, columns: Ints) -> Doubles:
    """Magnitudes without the base and these exponents."""
    found: Doubles = np.abs(weight) / _power(base + rows)[:, None] / _power(columns)[None, :]
    return found


def _phase(weight: Floats, base: float) -> tuple[Ints, Flags]:
    """Which of the four quarters of an octave makes each weight a short binary number, and where
    exactly one does.
    """
    size = np.abs(weight).astype(np.float64)
    short = np.stack([_twos(size / _power(base + quarter))[1] for quarter in range(4)])
    return np.argmax(short, axis=0).astype(np.int64), short.sum(axis=0) == 1


def _power(quarters: Any) -> Doubles:
    found: Doubles = np.exp2(np.asarray(quarters, dtype=np.float64) / 4)
    return found


def _share(sample: Floats) -> tuple[float, float]:
    """The share of magnitudes in the commonest place of a quarter octave, and that place."""
    place = 4 * np.log2(np.abs(sample[sample != 0]).astype(np.float64))
    part = place % 1
    if not len(part):
        return 0.0, 0.0
    counts = np.bincount((part * _BINS).astype(np.int64) % _BINS, minlength=_BINS)
    best = int(np.argmax(counts + np.roll(counts, 1) + np.roll(counts, -1)))
    away = (part - (best + 0.5) / _BINS + 0.5) % 1 - 0.5
    close = np.abs(away) < 1.5 / _BINS
    return float(close.mean()), float((best + 0.5) / _BINS + np.median(away[close]))


def _phases(phase: Ints, sure: Flags) -> tuple[Ints, Ints]:
    """Row and column phases modulo 4 whose sums are the sure entries'; from the row that knows most
    columns.
    """
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
    found: Ints = np.argmax(
        np.stack([((values == v) & where).sum(axis=axis) for v in range(count)]), axis=0
    )
    return found


def _twos(size: Doubles) -> tuple[Ints, Flags]:
    """Factors of two in numbers, and which of these are short: of few significant bits, to
    float32's accuracy.
    """
    mantissa, exponent = np.frexp(size)
    scaled = mantissa * (1 << _BITS)
    digits = np.rint(scaled).astype(np.int64)
    short = (np.abs(scaled - digits) < _SHORT) & (digits != 0)
    digits = np.where(short, digits, 1)
    return exponent.astype(np.int64) - _BITS + np.log2(digits & -digits).astype(np.int64), short


def _octaves(size: Doubles) -> Ints:
    """Powers of two per column that, with some per row, leave mostly odd numbers."""
    twos, clear = _twos(size)
    rows, columns = np.zeros(len(twos), dtype=np.int64), np.zeros(twos.shape[1], dtype=np.int64)
    for _ in range(_ROUNDS):
        columns = _mode(twos - rows[:, None], clear, 0)
        rows = _mode(twos - columns[None, :], clear, 1)
    return columns


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


def settle(
    weight: Floats, row_steps: Floats, factors: Floats, most: int = 32767
) -> tuple[NDArray[np.int32], Floats, Floats] | None:
    """Codes, steps and factors: those given, lowered by octaves until all codes are whole; None
    unless they give every weight back in a code of at most `most`.
    """
    row_steps, factors = row_steps.copy(), factors.copy()
    for _ in range(_ROUNDS * 2):
        with np.errstate(
            divide="ignore", invalid="ignore", over="ignore"
        ):  # steps may be beyond float32
            ratio = weight / row_steps[:, None] / factors[None, :]
            codes = np.rint(ratio)
            wrong = np.abs(ratio - codes) > _EXACT * np.abs(ratio)
        if not wrong.any():
            fits = bool(np.abs(codes).max(initial=0) <= most) and np.count_nonzero(
                codes
            ) == np.count_nonzero(weight)
            return _halved(codes.astype(np.int32), row_steps, factors) if fits else None
        bad_rows = wrong.mean(axis=1) > _SHARE
        row_steps[bad_rows] /= 2
        factors[wrong[~bad_rows].any(axis=0)] /= 2
    return None


def _halved(
    codes: NDArray[np.int32], rows: Floats, columns: Floats
) -> tuple[NDArray[np.int32], Floats, Floats]:
    """The same weights with every common factor of two moved from the codes into the steps."""
    for _ in range(_ROUNDS * 2):
        even_rows, even_columns = (np.bitwise_or.reduce(codes, axis=axis) for axis in (1, 0))
        even = (even_rows != 0) & (even_rows & 1 == 0)
        if even.any():
            codes[even], rows[even] = codes[even] >> 1, rows[even] * 2
            continue
        even = (even_columns != 0) & (even_columns & 1 == 0)
        if not even.any():
            break
        codes[:, even], columns[even] = codes[:, even] >> 1, columns[even] * 2
    return codes, rows, columns
