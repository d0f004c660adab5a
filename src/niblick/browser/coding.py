"""Matrices of small integers as one symbol stream, read again by codecs/native/stream.c.

The coder is the rate-distortion codec's. Integers that follow its trellis (those of artifacts that
it packed) are coded as the trellis' symbols, a bit less for each; any others as they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from niblick.codecs.contexts import ColumnContext
from niblick.codecs.grid import Grid
from niblick.codecs.symbols import Encoder
from niblick.codecs.tensor_stream import describe
from niblick.codecs.trellis import SCALAR, TRELLIS, TrellisCode
from niblick.engine.weights import Codes, integers

Ints = NDArray[np.int64]
_PATH, _BLOCKS = 256, 64


@dataclass(frozen=True)
class CodedMatrix:
    """How the symbols of a matrix are read: in blocks of `height` rows, from this context on."""

    context: ColumnContext
    code: TrellisCode
    height: int


def code_matrix(encoder: Encoder, codes: Codes) -> CodedMatrix:
    """Put a matrix into the stream."""
    levels = integers(codes).astype(np.int64)
    code, height, symbols, quantizers = _follow(levels)
    columns = np.ones(codes.cols) if codes.columns is None else codes.columns[: codes.cols]
    grid = Grid(0, _exponents(codes.scales), _exponents(columns))
    mean, corrections = describe(grid, symbols)

    def context() -> ColumnContext:
        return ColumnContext(
            mean=mean,
            rows=grid.rows,
            columns=grid.columns,
            corrections=corrections,
            scalar=code is SCALAR,
        )

    running = context()
    for block in _blocks(codes.rows, height):
        encoder.put(symbols[block].ravel(), running.kinds(block, quantizers[block]).ravel())
        running.learn(block, symbols[block])
    return CodedMatrix(context(), code, height)


def _follow(levels: Ints) -> tuple[TrellisCode, int, Ints, Ints]:
    """The code that levels (R, C) follow, rows of a block, symbols and quantizers (R, C)."""
    rows = len(levels)
    height = -(-rows // _PATH)
    found = _symbols(levels, height)
    if found is not None:
        return TRELLIS, height, *found
    return SCALAR, -(-rows // _BLOCKS), levels, np.zeros_like(levels)


def _symbols(levels: Ints, height: int) -> tuple[Ints, Ints] | None:
    """Symbols and quantizers of levels that follow the trellis; None where they do not."""
    state = np.zeros((height, levels.shape[1]), dtype=np.int64)
    symbols, quantizers = np.empty_like(levels), np.empty_like(levels)
    for block in _blocks(len(levels), height):
        part = levels[block]
        state = state[: len(part)]
        quantizer = TRELLIS.quantizer[state]
        if ((part + quantizer) % 2 * (part + 1 - quantizer)).any():
            return None
        quantizers[block] = quantizer
        symbols[block] = (part + np.sign(part) * quantizer) // 2
        state = TRELLIS.following[state, symbols[block] & 1]
    return symbols, quantizers


def _blocks(rows: int, height: int) -> list[slice]:
    return [slice(at, min(at + height, rows)) for at in range(0, rows, height)]


def _exponents(steps: NDArray[np.floating]) -> Ints:
    """Steps in quarter octaves around their median, zero for those that are none."""
    size = np.abs(steps.astype(np.float64))
    found = np.zeros(len(size), dtype=np.int64)
    if size.any():
        there = size > 0
        found[there] = np.rint(4 * np.log2(size[there] / np.median(size[there])))
    return found
