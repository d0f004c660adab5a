"""Matrices as the native engine reads them: integer codes in the fewest bits that hold them.

A quantized tensor keeps its codes; a float tensor is rounded to 24 bits, as fine as float32 for a
row's largest. Few codes are large: they are cut off at the range of fewer bits, and what is missing
of each stands in a list.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from niblick.codecs.native import address, load_native
from niblick.codecs.quantized import Floats, QuantizedTensor, Tensor, dequantized

BLOCK = 64  # columns are padded to runs of 64; codes are laid out 64 at a time, of
ROWS, GROUP = 32, 4  # half as many rows and so many columns
UNIT = 8 * ROWS
_RANGES = {
    bits: (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) for bits in (2, 4, 6, 8, 10, 12, 16, 24)
}
_WIDTHS = np.array(list(_RANGES), dtype=np.int64)
_FINEST = (1 << 23) - 256  # leaves room for rounding
_TAIL = 40  # codes of 8 bits that are multiplied in the time of one entry of a tail
_TAIL_COLUMNS, _REST = 4096, 32767  # what an entry can hold


class Codes(NamedTuple):
    """A matrix (rows, cols): `data` (blocks of 32 rows, bytes) and `scales` (rows,) float32.

    `columns` (cols padded to 64,) float32 multiplies the columns, where there is such a factor.
    `tail` (entries,) is what codes lack, and `tail_at` int32 where that of every sixteen rows
    begins; both None where none lacks any.
    """

    data: NDArray[np.uint8]
    scales: Floats
    columns: Floats | None
    rows: int
    cols: int
    bits: int
    tail: NDArray[np.uint32] | None = None
    tail_at: NDArray[np.int32] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        held = (self.data, self.scales, self.columns, self.tail, self.tail_at)
        return sum(array.nbytes for array in held if array is not None)


def encode(tensor: Tensor) -> Codes:
    """A matrix, quantized or float, as codes; rows are its first axis."""
    if isinstance(tensor, QuantizedTensor):
        sides = _float_sides(tensor)
        if sides is not None:
            signed = tensor.codes.dtype.kind == "i" and tensor.codes.dtype.itemsize <= 4
            return store(tensor.codes if signed else tensor.codes.astype(np.int32), *sides)
    weight = dequantized(tensor).reshape(tensor.shape[0], -1)
    steps = np.abs(weight).max(axis=1, initial=0) / np.float32(_FINEST)
    safe = np.where(steps > 0, steps, np.float32(1))
    return store(np.rint(weight / safe[:, None]).astype(np.int32), steps)


def _float_sides(tensor: QuantizedTensor) -> tuple[Floats, Floats | None] | None:
    """Row steps and column factors in float32; None where they and the codes cannot say it all."""
    low, high = _RANGES[24]
    plain = tensor.correction is None and tensor.rounded_to == "float32"
    if not plain or tensor.codes.min(initial=0) < low or tensor.codes.max(initial=0) > high:
        return None
    factors = tensor.wide_factors
    if not all(_is_normal(side) for side in (tensor.row_steps, factors) if side is not None):
        return None
    return (
        tensor.row_steps.astype(np.float32),
        None if factors is None else factors.astype(np.float32),
    )


def _is_normal(side: NDArray[np.float64]) -> bool:
    """Whether float32 holds every number without loss of range."""
    size = np.abs(side[side != 0])
    kind = np.finfo(np.float32)
    return bool((size >= kind.tiny).all() and (size <= kind.max).all())


def store(
    codes: NDArray[Any], steps: Floats, factors: Floats | None = None, *, tails: bool = True
) -> Codes:
    """Integers (rows, cols) of at most 24 bits times row steps and column factors.

    `tails` off gives every code the bits of the largest: the same numbers, read more slowly.
    """
    rows, cols = codes.shape
    native = _Native.of(codes)
    wider = native.wider() if native else _wider(codes)
    bits = _cheapest(codes, tails, wider)
    tail: tuple[Any, Any] = (None, None)
    if wider[bits]:
        outside = native.outside(bits, wider[bits]) if native else _outside(codes, bits)
        tail = _tail(codes, bits, outside)
    if factors is not None:
        factors = np.pad(factors.astype(np.float32), (0, -cols % BLOCK))
    return Codes(
        native.lay_out(bits) if native and bits <= 8 else _lay_out(codes, bits),
        steps.astype(np.float32),
        factors,
        rows,
        cols,
        bits,
        *tail,
    )


def _sizes(codes: NDArray[Any]) -> NDArray[Any]:
    """Magnitudes, of negative codes those of their complements."""
    found: NDArray[Any] = codes ^ (codes >> (8 * codes.dtype.itemsize - 1))
    return found


def _wider(codes: NDArray[Any]) -> dict[int, int]:
    """By number of bits: how many codes need more."""
    sizes = _sizes(codes)
    return {bits: int(np.count_nonzero(sizes > most)) for bits, (_, most) in _RANGES.items()}


def _outside(codes: NDArray[Any], bits: int) -> NDArray[np.int64]:
    """Places of the codes that need more than `bits`."""
    return np.flatnonzero(_sizes(codes) > _RANGES[bits][1])


def _cheapest(codes: NDArray[Any], tails: bool, wider: Mapping[int, int]) -> int:
    """The bits in which codes, and tails where they may be, are read soonest."""
    enough = next(bits for bits, count in wider.items() if not count)
    if not tails or codes.shape[1] > _TAIL_COLUMNS:
        return enough
    more = 0  # entries of the largest beyond their first
    if enough > 16:
        sizes = _sizes(codes)
        more = int((sizes[sizes > _REST] // _REST).sum())
    costs = {}
    for bits in (bits for bits in _RANGES if bits <= enough):
        beyond = wider[bits] + more if bits < enough else 0
        costs[bits] = codes.size * (bits / 8 + -(-bits // 8)) / 2 + _TAIL * beyond
    return min(costs, key=lambda bits: costs[bits])


class _Native:
    """Compiled code for the passes over all codes of a matrix, with the same results."""

    def __init__(self, library: ctypes.CDLL, codes: NDArray[Any]) -> None:
        self._library, self._codes = library, codes
        self._given = (address(codes), codes.itemsize)

    @classmethod
    def of(cls, codes: NDArray[Any]) -> _Native | None:
        """None where there is no library, or the codes are not as it takes them."""
        library = load_native(build=False)
        fits = codes.dtype in (np.int8, np.int16, np.int32) and codes.flags.c_contiguous
        return cls(library, codes) if library is not None and fits else None

    def wider(self) -> dict[int, int]:
        """`_wider`."""
        wider = np.empty(len(_WIDTHS), dtype=np.int64)
        self._library.niblick_wider(
            *self._given, self._codes.size, address(_WIDTHS), len(_WIDTHS), address(wider)
        )
        return dict(zip(_RANGES, wider.tolist(), strict=True))

    def outside(self, bits: int, count: int) -> NDArray[np.int64]:
        """Places of the `count` codes that need more bits."""
        places = np.empty(count, dtype=np.int64)
        most = _RANGES[bits][1]
        self._library.niblick_outside(*self._given, self._codes.size, most, address(places))
        return places

    def lay_out(self, bits: int) -> NDArray[np.uint8]:
        """`_lay_out` in at most 8 bits."""
        rows, cols = self._codes.shape
        shape = (-(-rows // ROWS), 4 * bits * -(-cols // BLOCK) * BLOCK)
        data = np.empty(shape, dtype=np.uint8)
        self._library.niblick_lay_out(*self._given, rows, cols, bits, address(data))
        return data


def _tail(
    codes: NDArray[Any], bits: int, places: NDArray[np.int64]
) -> tuple[NDArray[np.uint32], NDArray[np.int32]]:
    """Entries (nb_tail) of what the codes at `places` have beyond `bits`, and where those of every
    sixteen rows begin.

    What no entry can hold takes several.
    """
    rows = places // codes.shape[1]
    columns = places - rows * codes.shape[1]
    whole = codes.reshape(-1)[places].astype(np.int64)
    left = whole - np.clip(whole, *_RANGES[bits])
    times = -(-np.abs(left) // _REST)
    rows, columns = np.repeat(rows, times), np.repeat(columns, times)
    last = np.zeros(len(rows), dtype=np.bool_)
    last[np.cumsum(times) - 1] = True
    parts = np.repeat(np.sign(left) * _REST, times)
    parts[last] = left - np.sign(left) * _REST * (times - 1)
    entries = (rows % 16 | columns << 4 | parts << 16).astype(np.uint32)
    starts = np.searchsorted(rows // 16, np.arange(-(-len(codes) // ROWS) * ROWS // 16 + 1)).astype(
        np.int32
    )
    return entries, starts


def decode(codes: Codes) -> Floats:
    """The matrix (rows, cols) that the engine multiplies with."""
    weight: Floats = integers(codes).astype(np.float32) * codes.scales[:, None]
    return weight if codes.columns is None else weight * codes.columns[: codes.cols]


def integers(codes: Codes) -> NDArray[np.int32]:
    """The integers (rows, cols) that were stored, tails included."""
    blocks = len(codes.data)
    units = codes.data.shape[1] // (32 * codes.bits)
    values, at = np.full((blocks, units, UNIT), -(1 << (codes.bits - 1)), dtype=np.int32), 0
    for low, width in _planes(codes.bits):
        part = codes.data[:, at : at + units * 32 * width].reshape(blocks, units, -1)
        values += _unpack(part, width) << low
        at += units * 32 * width
    tiled = values.reshape(blocks, -1, ROWS, GROUP)
    whole = tiled.swapaxes(1, 2).reshape(blocks * ROWS, -1)[: codes.rows, : codes.cols]
    if codes.tail is not None and codes.tail_at is not None:
        rows = np.repeat(16 * np.arange(len(codes.tail_at) - 1), np.diff(codes.tail_at)) + (
            codes.tail & 15
        )
        np.add.at(whole, (rows, codes.tail >> 4 & 4095), codes.tail.view(np.int32) >> 16)
    return whole


def _planes(bits: int) -> list[tuple[int, int]]:
    """The lowest bit and the number of bits of a code's bytes and of what is above them."""
    return [(low, min(8, bits - low)) for low in range(0, bits, 8)]


def _lay_out(codes: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """Blocks of 32 rows of codes plus half their range, as nb_matrix has them."""
    rows, cols = codes.shape
    if codes.dtype.itemsize * 8 > bits:
        codes = np.clip(codes, *_RANGES[bits])
    shape = (-(-rows // ROWS) * ROWS, -(-cols // BLOCK) * BLOCK)
    values = np.full(shape, 1 << (bits - 1), dtype=np.uint8 if bits <= 8 else np.int32)
    values[:rows, :cols] += codes.astype(values.dtype)  # in 8 bits the sum wraps to the right one
    tiled = values.reshape(-1, ROWS, values.shape[1] // GROUP, GROUP).swapaxes(1, 2)
    quarters = tiled.reshape(len(tiled), -1, 4, BLOCK)
    if values.dtype.itemsize * 8 == bits:
        return quarters.reshape(len(tiled), -1)
    planes = [_pack(quarters >> low, width).reshape(len(tiled), -1) for low, width in _planes(bits)]
    return np.concatenate(planes, axis=1)


def _pack(quarters: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """Quarters (blocks, units, 4, 64), their low `bits`, as (blocks, units, 32 * bits) bytes."""
    low = (quarters & ((1 << bits) - 1)).astype(np.uint8)
    if bits == 8:
        return low.reshape(*low.shape[:2], -1)
    one, two, three, four = np.moveaxis(low, 2, 0)
    if bits == 6:
        parts = [one | four << 2 & 0xC0, two | four << 4 & 0xC0, three | four << 6]
    elif bits == 4:
        parts = [one | two << 4, three | four << 4]
    else:
        parts = [one | two << 2 | three << 4 | four << 6]
    return np.concatenate(parts, axis=2)


def _unpack(data: NDArray[np.uint8], bits: int) -> NDArray[np.int32]:
    """The inverse of `_pack`: (blocks, units, 256)."""
    parts = np.split(data, bits // 2, axis=2)
    if bits == 6:
        one, two, three = (part >> 6 for part in parts)
        quarters = [*(part & 63 for part in parts), one << 4 | two << 2 | three]
    else:
        quarters = [
            part >> shift & ((1 << bits) - 1) for part in parts for shift in range(0, 8, bits)
        ]
    return np.concatenate(quarters, axis=2).astype(np.int32)
