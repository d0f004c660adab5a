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


@dataclass(frozen=True, eq=False, kw_only=True)
class QuantizedTensor:
    """Integers times steps: value[r, c] = codes[r, c] * (row_steps[r] * column_factors[c // g]).

    `codes` (R, C) of any integer type; `row_steps` (R,) and `column_factors` (ceil(C / g),) with
    g = `group`, None for ones, in float64; `correction` adds A @ B of shapes (R, k) and (k, C).
    Products are formed in float64 in this order and rounded once to `rounded_to`; `shape` is the
    tensor's own.
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
        steps, factors = self.row_steps[:, None], self.wide_factors
        if factors is not None:
            steps = steps * factors[None, :]
        with np.errstate(over="ignore", invalid="ignore"):
            values = self.codes * steps
            if self.correction is not None:
                values = values + self.correction[0] @ self.correction[1]
            rounded = values.astype(np.float32)
        if self.rounded_to == "bfloat16":
            rounded = round_to_bfloat16(rounded)
        return rounded.reshape(self.shape)


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
