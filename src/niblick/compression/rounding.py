"""Uniform rounding per row: the one function that late quantization-aware training and the export
both use.

Row r of a weight (R, C) becomes code * scale[r] with codes in -m..m, m = 2^(bits-1) - 1, and scale
the row's largest magnitude over m, stored as float16. There is no floor on the scale, so small rows
keep their resolution.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from niblick.errors import ArtifactError
from niblick.plan import Plan, Role
from niblick.recipe import Recipe


@dataclass(frozen=True)
class RoundingSpec:
    """How one parameter is rounded: signed codes of `bits` bits, one scale per row."""

    bits: int

    @property
    def limit(self) -> int:
        """The largest code."""
        return (1 << (self.bits - 1)) - 1


def row_specs(recipe: Recipe, plan: Plan) -> dict[str, RoundingSpec]:
    """Per-row rounding of every matrix and embedding, by name, with the recipe's bits."""
    bits = {
        Role.MATRIX: recipe.artifact.matrix_bits,
        Role.EMBEDDING: recipe.artifact.embedding_bits,
    }
    return {p.name: RoundingSpec(bits[p.role]) for p in plan.exported if p.role in bits}


def rounding_specs(recipe: Recipe, plan: Plan) -> dict[str, RoundingSpec]:
    """The parameters that late quantization-aware training rounds, as the recipe's codec will.

    The codec "rd" has none: its grid depends on data measured after training, so there is nothing
    to share.
    """
    return {} if recipe.artifact.codec == "rd" else row_specs(recipe, plan)


def quantize(weight: Tensor, spec: RoundingSpec) -> tuple[Tensor, Tensor]:
    """Codes (R, C) int8 and scales (R,) float16 of `weight` (R, ...), float32; rows of zeros get
    scale 0.
    """
    rows = weight.detach().reshape(weight.shape[0], -1).float()
    largest = rows.abs().amax(dim=1) if rows.shape[1] else rows.new_zeros(rows.shape[0])
    scale = (largest / spec.limit).to(torch.float16)
    wide = scale.float().unsqueeze(1)
    codes = (
        torch.where(wide > 0, rows / wide, torch.zeros_like(rows))
        .round_()
        .clamp_(-spec.limit, spec.limit)
    )
    return codes.to(torch.int8), scale


def dequantize(codes: Tensor, scale: Tensor, shape: tuple[int, ...]) -> Tensor:
    """codes * scale of their row, float32, in `shape`."""
    return (codes.float() * scale.float().unsqueeze(1)).reshape(shape)


def round_trip(weight: Tensor, spec: RoundingSpec) -> Tensor:
    """`dequantize(quantize(weight))`, bit for bit what the file gives back; same shape and device,
    float32.
    """
    codes, scale = quantize(weight, spec)
    return dequantize(codes, scale, tuple(weight.shape))


def to_float16(name: str, tensor: Tensor) -> Tensor:
    """`tensor` as float16; `ArtifactError` by name where a value is beyond its range."""
    half = tensor.to(torch.float16)
    if not bool(torch.isfinite(half).all()):
        worst = float(tensor.abs().max())
        raise ArtifactError(
            f"tensor {name!r} holds {worst:g}, beyond what float16 can store (65504)"
        )
    return half
