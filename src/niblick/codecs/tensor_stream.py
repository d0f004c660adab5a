"""The payload's symbol stream: for each tensor its grid, its rows' corrections, then its symbols
row by row.
"""

from __future__ import annotations

from dataclasses import dataclass

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
from niblick.codecs.fixed import power_of_two, powers
from niblick.codecs.grid import Grid, machine_of, paths_of, unit
from niblick.codecs.matrices import matrix_shape
from niblick.codecs.native.decoder import NativeDecoder, native_stream
from niblick.codecs.symbols import Decoder, Encoder, Tables
from niblick.codecs.trellis import Machine
from niblick.errors import ArtifactError
from niblick.plan import Parameter

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
AnyDecoder = Decoder | NativeDecoder
_WORTH_COMPILING = 1 << 19  # symbols that the reference decodes in the time that compiling takes
_LARGEST_NUMBER, _LARGEST_CORRECTION = 4096, 12
_SPREADS = (0.9, 2.2, 5.0)


@dataclass(frozen=True)
class Bits:
    """Price of one tensor in bits: its symbols, its exponents, and the numbers that steer its
    model.
    """

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
    """Encode one tensor's grid and symbols (R, C); the grid alone where the symbols are `plain`,
    kept elsewhere.
    """
    rows, columns = matrix_shape(parameter)
    mean, corrections = _describe(grid, symbols)
    numbers = encoder.put(np.array([grid.tensor, mean]), np.full(2, NUMBER_KIND))
    scales = _write_exponents(encoder, grid.rows // unit(columns), rows)
    scales += _write_exponents(encoder, grid.columns // unit(rows), columns)
    if plain:
        return Bits(0.0, scales, numbers)
    numbers += encoder.put(corrections, np.full(rows, CORRECTION_KIND)) if rows > 1 else 0.0
    context = _context(parameter, grid, mean, corrections)
    walk = _Walk(machine_of(parameter), rows, columns, paths_of(parameter))
    price = 0.0
    for block in walk.blocks:
        quantizer = walk.quantizer(block)
        part = symbols[block]
        price += encoder.put(part.ravel(), context.kinds(block, quantizer).ravel())
        walk.advance(block, part)
        context.learn(block, part)
    return Bits(price, scales, numbers)


def open_decoder(stream: bytes, escapes: bytes, symbols: int) -> AnyDecoder:
    """A decoder of about so many symbols: the compiled one, where there is one or compiling it
    pays, or the reference.
    """
    library = native_stream(build=symbols >= _WORTH_COMPILING)
    return (
        Decoder(new_tables(), stream, escapes)
        if library is None
        else NativeDecoder(library, new_tables(), stream, escapes)
    )


def read_values(
    decoder: AnyDecoder, parameter: Parameter, delta: float, plain: Ints | None = None
) -> tuple[Grid, NDArray[np.float32]]:
    """Undo `write_tensor`: the grid, and levels times its steps for `delta`, (R, C); infinite or
    NaN beyond float32.

    `plain` are the symbols of a tensor whose grid alone was written.
    """
    if isinstance(decoder, NativeDecoder) and plain is None:
        grid, mean = _read_grid(decoder, parameter)
        context, machine = _read_context(decoder, parameter, grid, mean), machine_of(parameter)
        height, step = (
            _height(machine, len(grid.rows), paths_of(parameter)),
            delta * power_of_two(grid.tensor),
        )
        return grid, decoder.values(
            context, machine, height, step, powers(grid.rows), powers(grid.columns)
        )
    grid, levels = read_tensor(decoder, parameter, plain)
    with np.errstate(over="ignore", invalid="ignore"):
        return grid, (levels * grid.steps(delta)).astype(np.float32)


def read_tensor(
    decoder: AnyDecoder, parameter: Parameter, plain: Ints | None = None
) -> tuple[Grid, Ints]:
    """What `read_values` reads, by the reference: the grid, and the levels (R, C), multiples of its
    steps.
    """
    grid, mean = _read_grid(decoder, parameter)
    rows, columns = matrix_shape(parameter)
    machine = machine_of(parameter)
    walk = _Walk(machine, rows, columns, paths_of(parameter))
    levels = np.zeros((rows, columns), dtype=np.int64)
    context = _read_context(decoder, parameter, grid, mean) if plain is None else None
    for block in walk.blocks:
        quantizer = walk.quantizer(block)
        if plain is not None:
            part = plain[block]
        else:
            assert context is not None
            kinds = context.kinds(block, quantizer)
            part = decoder.take(kinds.ravel()).reshape(kinds.shape)
            context.learn(block, part)
        walk.advance(block, part)
        levels[block] = machine.level(part, quantizer)
    return grid, levels


def _read_grid(decoder: AnyDecoder, parameter: Parameter) -> tuple[Grid, int]:
    """The grid, and the number that describes the mean magnitude."""
    rows, columns = matrix_shape(parameter)
    numbers = decoder.take(np.full(2, NUMBER_KIND))
    if int(np.abs(numbers).max()) > _LARGEST_NUMBER:
        raise ArtifactError(f"the grid of {parameter.name!r} is out of range")
    row_exponents = _read_exponents(decoder, rows) * unit(columns)
    column_exponents = _read_exponents(decoder, columns) * unit(rows)
    return Grid(int(numbers[0]), row_exponents, column_exponents), int(numbers[1])


def _read_context(
    decoder: AnyDecoder, parameter: Parameter, grid: Grid, mean: int
) -> ColumnContext:
    rows, _ = matrix_shape(parameter)
    corrections = (
        decoder.take(np.full(rows, CORRECTION_KIND)) if rows > 1 else np.zeros(rows, dtype=np.int64)
    )
    if rows and int(np.abs(corrections).max()) > _LARGEST_CORRECTION:
        raise ArtifactError(f"the corrections of {parameter.name!r} are out of range")
    return _context(parameter, grid, mean, corrections)


def _height(machine: Machine, rows: int, paths: int) -> int:
    """Rows of a block: one per trellis path; without a trellis the blocks only pace the
    adaptation.
    """
    return paths if machine.states > 1 else max(1, -(-rows // 64))


class _Walk:
    """Rows in blocks of one row per trellis path, and the state of every path of every column."""

    def __init__(self, machine: Machine, rows: int, columns: int, paths: int) -> None:
        height = _height(machine, rows, paths)
        self.blocks = [slice(start, min(start + height, rows)) for start in range(0, rows, height)]
        self._machine = machine
        self._state = np.zeros((height, columns), dtype=np.int64)

    def quantizer(self, block: slice) -> Ints:
        """The quantizer (n, C) of each symbol in `block`."""
        found: Ints = self._machine.quantizer[self._state[: block.stop - block.start]]
        return found

    def advance(self, block: slice, symbols: Ints) -> None:
        """Move every path by its symbol."""
        if self._machine.states > 1:
            count = block.stop - block.start
            self._state[:count] = self._machine.following[self._state[:count], symbols & 1]


def _context(parameter: Parameter, grid: Grid, mean: int, corrections: Ints) -> ColumnContext:
    scalar = machine_of(parameter).states == 1
    return ColumnContext(
        mean=mean, rows=grid.rows, columns=grid.columns, corrections=corrections, scalar=scalar
    )


def _describe(grid: Grid, symbols: Ints) -> tuple[int, Ints]:
    """The mean magnitude at exponents 0, in quarter octaves, and each row's correction in half
    octaves.
    """
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


def _spread(exponents: Ints) -> int:
    """Which of four tables suits exponents of this mean magnitude."""
    return int(np.searchsorted(_SPREADS, np.abs(exponents).mean()))


def _write_exponents(encoder: Encoder, exponents: Ints, count: int) -> float:
    if count < 2:
        return 0.0
    spread = _spread(exponents)
    price = encoder.put(np.array([spread]), np.array([NUMBER_KIND]))
    return price + encoder.put(exponents, np.full(count, EXPONENT_KIND + spread))


def _read_exponents(decoder: AnyDecoder, count: int) -> Ints:
    if count < 2:
        return np.zeros(count, dtype=np.int64)
    spread = int(decoder.take(np.array([NUMBER_KIND]))[0])
    if not 0 <= spread <= len(_SPREADS):
        raise ArtifactError(
            f"exponent table {spread} does not exist; there are {len(_SPREADS) + 1}"
        )
    exponents = decoder.take(np.full(count, EXPONENT_KIND + spread))
    if int(np.abs(exponents).max()) > 64:
        raise ArtifactError("step exponents are out of range")
    return exponents
