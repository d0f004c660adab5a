"""Quantized tensors: what passes from an artifact to whatever runs or exports the model.

A codec decodes to them, the lab's model dequantizes them, the engine multiplies their codes as they
are. Nothing guesses integers back from floats.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
_BLOCK = 1 << 15  # elements whose float64 products are held at once: they stay in the cache


@dataclass(frozen=True, eq=False, kw_only=True)
class QuantizedTensor:
    """Integers times steps: codes[r, c] * (row_steps[r] * column_factors[c // group]).

    `codes` (R, C) of any integer type; `row_steps` (R,) and `column_factors` (ceil(C / group),),
    None for ones, in float64; `correction` adds A @ B of shapes (R, k) and (k, C). Values are
    formed in float64 in this order and rounded to float32, then to bfloat16 where `rounded_to` says
    so; a zero is never negative. `shape` is the tensor's own.
    """

    shape: tuple[int, ...]
    codes: NDArray[Any]
    row_steps: NDArray[np.float64]
    column_factors: NDArray[np.float64] | None = None
    group: int = 1
    correction: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None
    rounded_to: Literal["float32", "bfloat16"] = "float32"

    @property
    def wide_factors(self) -> NDArray[np.float64] | None:
        """One factor per column (C,), or None where all are one."""
        if self.column_factors is None or self.group == 1:
            return self.column_factors
        return np.repeat(self.column_factors, self.group)[: self.codes.shape[1]]

    def dequantize(self) -> Floats:
        """The float32 tensor in its own shape; infinite or NaN where a value is beyond float32."""
        rows_in_all, columns = self.codes.shape
        out = np.empty((rows_in_all, columns), dtype=np.float32)
        height, factors = max(1, _BLOCK // max(columns, 1)), self.wide_factors
        for start in range(0, rows_in_all, height):
            rows = slice(start, start + height)
            out[rows] = self._rows(rows, factors)
        return out.reshape(self.shape)

    def _rows(self, rows: slice, factors: NDArray[np.float64] | None) -> Floats:
        steps, values = self.row_steps[rows, None], self.codes[rows].astype(np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            values *= steps if factors is None else steps * factors
            if self.correction is not None:
                values += self.correction[0][rows] @ self.correction[1]
            rounded = values.astype(np.float32)
        rounded += 0.0  # one zero of two, so that equal numbers have equal bytes
        return round_to_bfloat16(rounded) if self.rounded_to == "bfloat16" else rounded


Tensor = QuantizedTensor | Floats
Tensors = Mapping[str, Tensor]


def dequantized(tensor: Tensor) -> Floats:
    """The float32 values of a tensor, quantized or not."""
    return tensor.dequantize() if isinstance(tensor, QuantizedTensor) else tensor


def round_to_bfloat16(values: Floats) -> Floats:
    """float32 values rounded to the nearest bfloat16, ties to even; infinities and NaN are kept."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000
    return np.where(np.isfinite(values), rounded.view(np.float32), values)


def narrow(codes: NDArray[Any], *, copy: bool = False) -> NDArray[Any]:
    """The integers in the smallest of int8, int16 and int32 that holds them, of their own memory
    with `copy`.
    """
    if codes.dtype == np.int8 and not copy:
        return codes
    largest = max(int(codes.max()), -int(codes.min())) if codes.size else 0
    kinds = (np.int8, np.int16, np.int32)
    return codes.astype(next(kind for kind in kinds if largest <= np.iinfo(kind).max), copy=copy)
