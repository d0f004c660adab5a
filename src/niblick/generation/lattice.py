"""Weights as integer codes times scales, in the fewest bits that lose nothing that could be seen.

A matrix made of whole multiples of one step per row, or of row steps times column factors (what packing writes), is
kept exactly, in 4, 6, 8 or 16 bits per weight; any other is rounded to 24 bits, as fine as float32 for a row's largest.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from niblick.generation.grids import find_grid

BLOCK = 64  # columns are padded to runs of 64; codes are laid out 64 at a time, of
ROWS, GROUP = 32, 4  # half as many rows and so many columns
_EXACT = 3e-7  # relative to the row's largest value: float32 rounding of code * scale
_RANGES = {4: (-8, 7), 6: (-32, 31), 8: (-128, 127), 16: (-32768, 32767)}
_FINEST = (1 << 23) - 256  # leaves room for rounding
_PROBE = 4  # rows looked at before the whole matrix is

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Codes:
    """A matrix (rows, cols): `data` (blocks of 32 rows, bytes) as the engine reads it, `scales` (rows,) float32.

    `columns` (cols padded to 64,) float32 multiplies the columns, where there is such a factor.
    """

    data: NDArray[np.uint8]
    scales: Floats
    columns: Floats | None
    rows: int
    cols: int
    bits: int

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.data.nbytes + self.scales.nbytes + (0 if self.columns is None else self.columns.nbytes)


def encode(weight: Floats, *, exact: bool = True, base: float | None = None) -> Codes:
    """Codes of a float32 matrix (rows, cols); with `exact` off, always 8 bits by nearest rounding.

    `base`: where the grid of this matrix's model lies, if that is known (`grids.find_base`).
    """
    weight = np.ascontiguousarray(weight, dtype=np.float32)
    rows, cols = weight.shape
    codes, steps, factors = _factors(weight, base) if exact else _rounded(weight, 127)
    low, high = int(codes.min(initial=0)), int(codes.max(initial=0))
    bits = next((bits for bits, (least, most) in _RANGES.items() if least <= low and high <= most), 24)
    width = -(-cols // BLOCK) * BLOCK
    padded = np.zeros((-(-rows // ROWS) * ROWS, width), dtype=np.int32)
    padded[:rows, :cols] = codes
    if factors is not None:
        factors = np.pad(factors.astype(np.float32), (0, width - cols))
    return Codes(_lay_out(padded, bits), steps.astype(np.float32), factors, rows, cols, bits)


def _factors(weight: Floats, base: float | None) -> tuple[NDArray[np.int32], Floats, Floats | None]:
    """Codes, row steps and column factors (None for all ones)."""
    steps = _steps(weight)
    if steps is not None:
        return _round(weight, steps), steps, None
    found = find_grid(weight, base)
    return _rounded(weight, _FINEST) if found is None else found


def _rounded(weight: Floats, most: int) -> tuple[NDArray[np.int32], Floats, None]:
    steps = np.abs(weight).max(axis=1) / np.float32(most)
    return _round(weight, steps), steps, None


def decode(codes: Codes) -> Floats:
    """The matrix (rows, cols) that the engine multiplies with."""
    data = codes.data.reshape(len(codes.data), -1, 8 * codes.bits)
    if codes.bits >= 8:
        parts = data.reshape(*data.shape[:2], codes.bits // 8, BLOCK).astype(np.int32)
        shifts = 8 * np.arange(codes.bits // 8, dtype=np.int32)
        values = (parts << shifts[:, None]).sum(axis=2) - (1 << (codes.bits - 1))
    else:
        values = _unpack(data, codes.bits)
    tiled = values.reshape(len(data), -1, ROWS, GROUP)
    values = tiled.swapaxes(1, 2).reshape(len(data) * ROWS, -1)
    weight: Floats = values[: codes.rows, : codes.cols].astype(np.float32) * codes.scales[:, None]
    return weight if codes.columns is None else weight * codes.columns[: codes.cols]


def _round(weight: Floats, steps: Floats) -> NDArray[np.int32]:
    safe = np.where(steps > 0, steps, np.float32(1))
    return np.rint(weight / safe[:, None]).astype(np.int32)


def _steps(weight: Floats) -> Floats | None:
    """The step of every row, or None where some row is not made of whole multiples of one, -128 .. 127 of them."""
    if _row_steps(weight[:_PROBE]) is None:
        return None
    return _row_steps(weight)


def _row_steps(weight: Floats) -> Floats | None:
    """The smallest value of a row is 1, 2, 3 ... steps: the first count at which the row fits is taken."""
    size = np.abs(weight)
    top = size.max(axis=1, initial=0)
    least = np.where(size > 0, size, np.float32(np.inf)).min(axis=1, initial=np.inf)
    steps = np.zeros(len(weight), dtype=np.float32)
    left = np.flatnonzero(top > 0)
    for count in range(1, 33):
        if not len(left):
            return steps
        units = np.rint(top[left] / (least[left] / count))
        step = (top[left] / np.maximum(units, 1)).astype(np.float32)
        fits = (units <= 128) & _fits(weight[left], step, top[left])
        steps[left[fits]] = step[fits]
        left = left[~fits]
    return None if len(left) else steps


def _fits(weight: Floats, step: Floats, top: Floats) -> NDArray[np.bool_]:
    codes = np.rint(weight / step[:, None])
    wrong = np.abs(codes * step[:, None] - weight).max(axis=1)
    inside = (codes.min(axis=1) >= -128) & (codes.max(axis=1) <= 127)
    found: NDArray[np.bool_] = (wrong <= _EXACT * top) & inside
    return found


def _lay_out(codes: NDArray[np.int32], bits: int) -> NDArray[np.uint8]:
    """Blocks of 32 rows; of every 4 columns twice 64 codes plus half their range: all low bytes, then all higher ones, for
    8, 16 and 24 bits; low nibbles, then pairs of high bits, for 4 and 6."""
    blocks = len(codes) // ROWS
    tiled = codes.reshape(blocks, ROWS, -1, GROUP).swapaxes(1, 2) + (1 << (bits - 1))
    if bits >= 8:
        whole = tiled.reshape(blocks, -1, 1, BLOCK)
        parts = np.concatenate([whole >> (8 * i) for i in range(bits // 8)], axis=2) & 255
        return np.ascontiguousarray(parts.astype(np.uint8).reshape(blocks, -1))
    values = tiled.astype(np.uint8).reshape(blocks, -1, 4, 16)
    low = values & 15
    nibbles = np.concatenate([low[:, :, 0] | low[:, :, 2] << 4, low[:, :, 1] | low[:, :, 3] << 4], axis=2)
    if bits == 4:
        return np.ascontiguousarray(nibbles.reshape(blocks, -1))
    high = values >> 4
    pairs = high[:, :, 0] | high[:, :, 1] << 2 | high[:, :, 2] << 4 | high[:, :, 3] << 6
    return np.ascontiguousarray(np.concatenate([nibbles, pairs], axis=2).reshape(blocks, -1))


def _unpack(data: NDArray[np.uint8], bits: int) -> NDArray[np.int32]:
    """The inverse of `_lay_out` for 4 and 6 bits: (rows, runs, bytes) -> (rows, runs, 64)."""
    first, second = data[:, :, :16], data[:, :, 16:32]
    parts = [first & 15, second & 15, first >> 4, second >> 4]
    if bits == 6:
        pairs = data[:, :, 32:48]
        parts = [part | (pairs >> (2 * i) & 3) << 4 for i, part in enumerate(parts)]
    return np.concatenate(parts, axis=2).astype(np.int32) - (1 << (bits - 1))
