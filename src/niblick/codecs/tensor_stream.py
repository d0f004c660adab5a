"""The payload's symbol stream: each tensor's grid, its rows' corrections, its symbols by row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from niblick.codecs.contexts import (
    CORRECTION_KIND,
    EXPONENT_KIND,
    NUMBER_KIND,
    ColumnContext,
    table_limits,
    table_means,
)
from niblick.codecs.fixed import powers
from niblick.codecs.grid import Grid, code_of, paths_of, unit
from niblick.codecs.matrices import matrix_shape
from niblick.codecs.native import NativeDecoder, load_native
from niblick.codecs.symbols import Decoder, Encoder, Tables
from niblick.codecs.trellis import TrellisCode
from niblick.errors import ArtifactError
from niblick.plan import Parameter

Ints = NDArray[np.int64]
Levels = NDArray[Any]  # signed integers of at most 32 bits
AnyDecoder = Decoder | NativeDecoder
_WORTH_COMPILING = 1 << 19  # symbols that the reference decodes in the time that compiling takes
LARGEST_SYMBOL, _LARGEST_NUMBER, _LARGEST_CORRECTION = 1 << 20, 4096, 12
_SPREADS = (0.9, 2.2, 5.0)


class Bits(NamedTuple):
    """Price of one tensor in bits: its symbols, its exponents, the numbers that steer its model."""

    symbols: float
    scales: float
    models: float

    @property
    def total(self) -> float:
        """All three."""
        return self.symbols + self.scales + self.models


def new_tables() -> Tables:
    """The tables that encoder and decoder both start from."""
    return Tables(table_means(), table_limits())


def write_tensor(
    encoder: Encoder, parameter: Parameter, grid: Grid, symbols: Ints, *, plain: bool = False
) -> Bits:
    """Encode one tensor's grid and symbols (R, C).

    Of a tensor whose symbols are `plain`, kept elsewhere, the grid alone.
    """
    rows, columns = matrix_shape(parameter)
    mean, corrections = describe(grid, symbols)
    numbers = encoder.put(np.array([grid.tensor, mean]), np.full(2, NUMBER_KIND))
    scales = _write_exponents(encoder, grid.rows // unit(columns), rows)
    scales += _write_exponents(encoder, grid.columns // unit(rows), columns)
    if plain:
        return Bits(0.0, scales, numbers)
    numbers += encoder.put(corrections, np.full(rows, CORRECTION_KIND)) if rows > 1 else 0.0
    context = _context(parameter, grid, mean, corrections)
    before = encoder.bits

    def put(block: slice, quantizer: Ints) -> Ints:
        part = symbols[block]
        encoder.put(part.ravel(), context.kinds(block, quantizer).ravel())
        context.learn(block, part)
        return part

    walk(parameter, put)
    return Bits(encoder.bits - before, scales, numbers)


def open_decoder(stream: bytes, escapes: bytes, symbols: int) -> AnyDecoder:
    """A decoder of about so many symbols: compiled where it is or pays, else the reference."""
    library = load_native(build=symbols >= _WORTH_COMPILING)
    if library is None:
        return Decoder(new_tables(), stream, escapes)
    return NativeDecoder(library, new_tables(), stream, escapes)


def read_tensor(
    decoder: AnyDecoder, parameter: Parameter, plain: Ints | None = None
) -> tuple[Grid, Levels]:
    """Undo `write_tensor`: the grid, and the levels (R, C), whole multiples of its steps.

    `plain` are the symbols of a tensor whose grid alone was written.
    """
    rows, columns = matrix_shape(parameter)
    grid, mean = _read_grid(decoder, parameter)
    if plain is not None:
        return grid, walk(parameter, lambda block, _: plain[block])
    corrections = np.zeros(rows, dtype=np.int64)
    if rows > 1:
        corrections = decoder.take_of(CORRECTION_KIND, rows)
    if rows and int(np.abs(corrections).max()) > _LARGEST_CORRECTION:
        raise ArtifactError(f"the corrections of {parameter.name!r} are out of range")
    context = _context(parameter, grid, mean, corrections)
    if isinstance(decoder, NativeDecoder):
        code = code_of(parameter)
        return grid, decoder.levels(context, code, _height(code, parameter), (rows, columns))

    def take(block: slice, quantizer: Ints) -> Ints:
        kinds = context.kinds(block, quantizer)
        part = decoder.take(kinds.ravel()).reshape(kinds.shape)
        context.learn(block, part)
        return part

    return grid, walk(parameter, take)


def walk(parameter: Parameter, take: Callable[[slice, Ints], Ints]) -> Levels:
    """The levels (R, C) of a tensor whose symbols `take` gives block by block.

    It is called with the rows of the block and each symbol's quantizer (n, C). Every path of every
    column moves by its symbols.
    """
    (rows, columns), code = matrix_shape(parameter), code_of(parameter)
    height = _height(code, parameter)
    state = np.zeros((height, columns), dtype=np.int64)
    levels = np.zeros((rows, columns), dtype=np.int32)
    for start in range(0, rows, height):
        block = slice(start, min(start + height, rows))
        state = state[: block.stop - start]
        quantizer = code.quantizer[state]
        symbols = take(block, quantizer)
        levels[block] = code.level(symbols, quantizer)
        state = code.following[state, symbols & 1]
    return levels


def _height(code: TrellisCode, parameter: Parameter) -> int:
    """Rows of a block: one per trellis path; without a trellis blocks only pace the adaptation."""
    rows = matrix_shape(parameter)[0]
    return paths_of(parameter) if code.states > 1 else max(1, -(-rows // 64))


def _read_grid(decoder: AnyDecoder, parameter: Parameter) -> tuple[Grid, int]:
    """The grid, and the number that describes the mean magnitude."""
    rows, columns = matrix_shape(parameter)
    numbers = decoder.take_of(NUMBER_KIND, 2)
    if int(np.abs(numbers).max()) > _LARGEST_NUMBER:
        raise ArtifactError(f"the grid of {parameter.name!r} is out of range")
    row_exponents = _read_exponents(decoder, rows) * unit(columns)
    column_exponents = _read_exponents(decoder, columns) * unit(rows)
    return Grid(int(numbers[0]), row_exponents, column_exponents), int(numbers[1])


def _context(parameter: Parameter, grid: Grid, mean: int, corrections: Ints) -> ColumnContext:
    scalar = code_of(parameter).states == 1
    return ColumnContext(
        mean=mean, rows=grid.rows, columns=grid.columns, corrections=corrections, scalar=scalar
    )


def describe(grid: Grid, symbols: Ints) -> tuple[int, Ints]:
    """The mean magnitude at exponents 0 in quarter octaves, each row's correction in half ones."""
    rows, columns = symbols.shape
    if not symbols.size:
        return 0, np.zeros(rows, dtype=np.int64)
    size = np.abs(symbols).astype(np.float64)
    row_scale, column_scale = powers(grid.rows), powers(grid.columns)
    column_mean = (size * row_scale[:, None]).mean(axis=0)
    mean = float((column_mean * column_scale).mean())
    level = int(np.clip(round(4 * np.log2(max(mean, 1e-3))), -40, 60))
    expected = np.maximum(column_mean.mean() / row_scale, 1e-9)
    found = np.maximum(size.mean(axis=1), 0.25 / columns)
    half_octaves = np.rint(2 * np.log2(found / expected))
    limit = _LARGEST_CORRECTION
    corrections = np.clip(half_octaves, -limit, limit).astype(np.int64)
    return level, corrections if rows > 1 and columns >= 8 else np.zeros(rows, dtype=np.int64)


def _write_exponents(encoder: Encoder, exponents: Ints, count: int) -> float:
    if count < 2:
        return 0.0
    # Which of four tables suits exponents of this mean magnitude.
    spread = int(np.searchsorted(_SPREADS, np.abs(exponents).mean()))
    price = encoder.put(np.array([spread]), np.array([NUMBER_KIND]))
    return price + encoder.put(exponents, np.full(count, EXPONENT_KIND + spread))


def _read_exponents(decoder: AnyDecoder, count: int) -> Ints:
    if count < 2:
        return np.zeros(count, dtype=np.int64)
    spread = int(decoder.take_of(NUMBER_KIND, 1)[0])
    if not 0 <= spread <= len(_SPREADS):
        raise ArtifactError(
            f"exponent table {spread} does not exist; there are {len(_SPREADS) + 1}"
        )
    exponents = decoder.take_of(EXPONENT_KIND + spread, count)
    if int(np.abs(exponents).max()) > 64:
        raise ArtifactError("step exponents are out of range")
    return exponents
