"""Successive quantization with error feedback: columns, and rows within them, absorb the errors of
those before them.

For a cost tr(L E A E^T) with A = (U + I) D (U + I)^T, U strictly upper triangular, column k is
rounded to t_k = w_k + sum_{j<k} e_j U_jk (GPTQ in the form of LDLQ); with L = (V + I) G (V + I)^T
its row r to t_rk + sum_{j<r} V_jr (t_jk - q_jk), q being what a weight is rounded to (both sides:
YAQA, Tseng et al. 2025). What remains is the sum of G_r D_k times the squared rounding error of row
r and column k. The rate is then spent best when the step of column k is proportional to D_k^(-1/2)
(water-filling, as in WaterSIC), that of row r to G_r^(-1/2); where L is known by its diagonal
alone, V is 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from niblick.codecs.trellis import TrellisCode, search, search_coupled

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
_BLOCK = 32  # columns whose errors are fed to all later ones at once
_DIGITLESS = 1e-36  # sums of float32 products below this have lost digits: they may contradict


def factor(columns: Floats, damping: float, floor: float) -> tuple[Floats, Floats]:
    """(U, D) of A, damped: strictly upper feedback (C, C) and conditional costs (C,).

    `damping` is added in proportion to each diagonal entry, so that channels of little weight keep
    their place, and `floor` times their mean to all: without it, channels that calibration hardly
    saw would absorb errors without bound. Without digits left, a matrix counts as its diagonal.
    """
    size = len(columns)
    diagonal = np.diagonal(columns)
    if diagonal.max() < _DIGITLESS:
        columns = np.diag(diagonal)
    least = floor * float(diagonal.mean()) or 1.0
    damped = columns + np.diag(damping * diagonal + least)
    upper = np.linalg.cholesky(damped[::-1, ::-1])[::-1, ::-1]
    scale = np.diagonal(upper).copy()
    return np.triu(upper / scale, 1) if size > 1 else np.zeros((1, 1)), scale**2


def round_columns(
    weight: Floats,
    step: Floats,
    feedback: Floats,
    code: TrellisCode,
    paths: int,
    bits: Floats,
    kinds: Ints,
    multiplier: float,
    coupling: Floats | None = None,
) -> tuple[Ints, Ints, float]:
    """Symbols (B, R, C), levels (B, R, C) and squared error of B matrices of one shape.

    `weight`, `step` and `kinds` are (B, R, C), `feedback` (B, C, C). The squared error is of the
    rounding alone, in units of steps, over everything. Each column's rows form `paths` interleaved
    trellis paths: row r belongs to path r mod `paths`. `coupling` (B, R, R) is V in units of the
    rows' steps, its rows path after path.
    """
    batch, rows, columns = weight.shape
    if coupling is not None:
        order = path_order(rows, paths)
        weight, step, kinds = weight[:, order], step[:, order], kinds[:, order]
    # Columns first, so that each is contiguous.
    pending, step = weight.transpose(0, 2, 1).copy(), np.ascontiguousarray(step.transpose(0, 2, 1))
    kinds = np.ascontiguousarray(kinds.transpose(0, 2, 1))
    symbols = np.zeros((batch, columns, rows), dtype=np.int64)
    levels, error, residual = np.zeros_like(symbols), np.zeros_like(pending), 0.0
    for begin in range(0, columns, _BLOCK):
        end = min(begin + _BLOCK, columns)
        for k in range(begin, end):
            target = (
                pending[:, k] + np.matmul(feedback[:, None, begin:k, k], error[:, begin:k])[:, 0]
            )
            aim = target / step[:, k]
            arguments = (code, aim, bits, kinds[:, k], multiplier)
            if coupling is None:
                symbols[:, k], levels[:, k] = _apart(*arguments, paths)
            else:
                symbols[:, k], levels[:, k], aim = search_coupled(*arguments, coupling, paths)
            error[:, k] = weight[:, :, k] - levels[:, k] * step[:, k]
            residual += float(((aim - levels[:, k]) ** 2).sum())
        later = feedback[:, begin:end, end:].transpose(0, 2, 1)
        pending[:, end:] += np.matmul(later, error[:, begin:end])
    if coupling is not None:
        back = np.argsort(order)
        symbols, levels = symbols[:, :, back], levels[:, :, back]
    return symbols.transpose(0, 2, 1), levels.transpose(0, 2, 1), residual


def path_order(rows: int, paths: int) -> Ints:
    """The rows, path after path."""
    return np.concatenate([np.arange(path, rows, paths) for path in range(paths)])


def _apart(
    code: TrellisCode, target: Floats, bits: Floats, kinds: Ints, multiplier: float, paths: int
) -> tuple[Ints, Ints]:
    """Symbols and levels (B, R) of one column of B matrices."""
    batch, rows = target.shape
    found, level = search(
        code, interleave(target, paths), bits, interleave(kinds, paths), multiplier
    )
    return deinterleave(found, batch, rows, paths), deinterleave(level, batch, rows, paths)


def interleave(values: NDArray[Any], paths: int) -> NDArray[Any]:
    """(B, R) -> (L, B * paths), padded with zeros to whole rows of paths."""
    batch, rows = values.shape
    length = -(-rows // paths)
    padded = np.zeros((batch, length * paths), dtype=values.dtype)
    padded[:, :rows] = values
    return padded.reshape(batch, length, paths).transpose(1, 0, 2).reshape(length, batch * paths)


def deinterleave(values: Ints, batch: int, rows: int, paths: int) -> Ints:
    """Undo `interleave`."""
    length = len(values)
    return (
        values.reshape(length, batch, paths)
        .transpose(1, 0, 2)
        .reshape(batch, length * paths)[:, :rows]
    )
