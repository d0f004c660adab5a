"""The quantization grid of each tensor: step exponents by tensor, row and column.

Steps are delta * 2^((tensor + row + column) / 4): within a quarter octave of the water-filling
optimum, where an error of one step costs the same wherever it is made. Exponents of short rows are
coarser, since each costs its own bits.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from niblick.codecs.base import QUANTIZED_ROLES, Sensitivity
from niblick.codecs.feedback import factor, path_order
from niblick.codecs.fixed import power_of_two, powers
from niblick.codecs.matrices import from_matrix, matrix_shape, origin
from niblick.codecs.quantized import QuantizedTensor, Tensor, narrow
from niblick.codecs.trellis import SCALAR, TRELLIS, TrellisCode
from niblick.plan import Parameter, Role

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
DAMPING, FLOOR = 0.04, 0.01
_ROW_FLOOR = {Role.EMBEDDING: 0.05}
_DEFAULT_ROW_FLOOR = 0.01
_LARGEST_EXPONENT, _LARGEST_TENSOR_EXPONENT = 60, 400
_PATH = 256
# A scalar step is as wide as 1.75 trellis steps at equal price. At two bits and fewer the errors of
# many matrices cost more together than their sum.
_SCALAR_QUARTERS, _MATRIX_QUARTERS = 3, -1


class Grid(NamedTuple):
    """Exponents in quarter octaves: one of the tensor, of each row (R,) and of each column (C,)."""

    tensor: int
    rows: Ints
    columns: Ints

    def sides(self, delta: float) -> tuple[Floats, Floats]:
        """Steps of the rows (R,) and factors of the columns (C,), each exactly rounded."""
        return delta * power_of_two(self.tensor) * powers(self.rows), powers(self.columns)

    def steps(self, delta: float) -> Floats:
        """Steps (R, C): the products of both sides."""
        rows, columns = self.sides(delta)
        return np.outer(rows, columns)


def code_of(parameter: Parameter) -> TrellisCode:
    """The trellis for matrices and embeddings with room for it, plain rounding for the small."""
    large = parameter.role in QUANTIZED_ROLES and matrix_shape(parameter)[0] >= 32
    return TRELLIS if large else SCALAR


def paths_of(parameter: Parameter) -> int:
    """How many interleaved trellis paths the rows form: paths of at most 256 rows."""
    return -(-matrix_shape(parameter)[0] // _PATH)


def unit(length: int) -> int:
    """Resolution of an exponent that serves `length` symbols, in quarter octaves."""
    return 1 if length >= 128 else 2 if length >= 24 else 4


class Feedback(NamedTuple):
    """What errors do to later columns (C, C), and to later rows (R, R): in units of their steps,
    path after path; None where rows are apart.
    """

    columns: Floats
    rows: Floats | None


def make_grid(parameter: Parameter, sensitivity: Sensitivity) -> tuple[Grid, Feedback]:
    """The grid of one tensor for delta = 1, and the feedback of its errors."""
    across, conditional = factor(sensitivity.columns, DAMPING, FLOOR)
    rows, columns = matrix_shape(parameter)
    weights, down, order = sensitivity.rows, None, path_order(rows, paths_of(parameter))
    if sensitivity.left is not None and code_of(parameter).states > 1:
        down, found = factor(sensitivity.left[np.ix_(order, order)], DAMPING, FLOOR)
        weights = found[np.argsort(order)] if sensitivity.trace else weights
    weights = np.maximum(weights, 1e-30)
    weights = weights + _ROW_FLOOR.get(parameter.role, _DEFAULT_ROW_FLOOR) * weights.mean()
    row_log = -2 * np.log2(weights)
    column_log = -2 * np.log2(conditional)
    row_middle, column_middle = float(np.median(row_log)), float(np.median(column_log))
    total = row_middle + column_middle + 2 * np.log2(max(sensitivity.trace, 1e-30))
    tensor = int(np.clip(round(total), -_LARGEST_TENSOR_EXPONENT, _LARGEST_TENSOR_EXPONENT))
    grid = Grid(
        tensor + wider(parameter),
        _coarse(row_log - row_middle, columns),
        _coarse(column_log - column_middle, rows),
    )
    if down is not None:
        steps = powers(grid.rows)[order]
        down *= steps[:, None] / steps
    return grid, Feedback(across, down)


def wider(parameter: Parameter) -> int:
    """By how many quarter octaves a tensor's steps are wider than what its errors cost by the
    quadratic model.
    """
    if code_of(parameter).states == 1:
        return _SCALAR_QUARTERS
    return _MATRIX_QUARTERS if parameter.role is Role.MATRIX else 0


def _coarse(logs: Floats, length: int) -> Ints:
    if len(logs) == 1:
        return np.zeros(1, dtype=np.int64)
    step = unit(length)
    limit = _LARGEST_EXPONENT // step
    return np.clip(np.rint(logs / step), -limit, limit).astype(np.int64) * step


def restore(parameter: Parameter, grid: Grid, levels: NDArray[Any], delta: float) -> Tensor:
    """The tensor that `levels` (R, C) mean on `grid`: quantized, or float32 for small roles."""
    with np.errstate(over="ignore", invalid="ignore"):
        rows, columns = grid.sides(delta)
    large = parameter.role in QUANTIZED_ROLES
    found = QuantizedTensor(
        shape=parameter.shape if large else levels.shape,
        codes=narrow(levels),
        row_steps=rows,
        column_factors=columns,
    )
    if large:
        return found
    return from_matrix(parameter, found.dequantize()) + origin(parameter)
