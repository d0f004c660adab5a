"""Late quantization-aware training's rounding: in torch, what the codec does when packing."""

from __future__ import annotations

import torch
from torch import Tensor

from niblick.codecs.base import RoundingSpec


def round_trip(weight: Tensor, spec: RoundingSpec) -> Tensor:
    """`weight` (R, ...) as the file gives it back, bit for bit; same shape and device, float32.

    See `codecs.nearest.quantize`: codes to nearest, one float16 scale per row.
    """
    rows = weight.detach().reshape(weight.shape[0], -1).float()
    largest = rows.abs().amax(dim=1) if rows.shape[1] else rows.new_zeros(rows.shape[0])
    scale = (largest / spec.limit).to(torch.float16).float().unsqueeze(1)
    codes = torch.where(scale > 0, rows / scale, torch.zeros_like(rows)).round_()
    return (codes.clamp_(-spec.limit, spec.limit) * scale).add_(0.0).reshape(weight.shape)
