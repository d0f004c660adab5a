"""Partial rotary embedding with absolute positions and a base that may be rescaled for a declared
context.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from niblick.plan.rotary import rotary_base
from niblick.recipe.model import ModelRecipe


def rotary_table(
    model: ModelRecipe, start: int, length: int, context: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """cos and sin (T, R/2), float32, of positions start .. start+T-1; angles are computed in
    float64.

    The newest are kept and given out again: they are not to be written to.
    """
    base, dims = rotary_base(model, context), model.rope_frequency_dims
    if torch.compiler.is_compiling():  # the compiler keeps what is constant by itself
        return _angles(base, dims, model.rope_dims // 2, start, length, device)
    return _kept(
        base, dims, model.rope_dims // 2, start, length, device, torch.is_inference_mode_enabled()
    )


@lru_cache(maxsize=4)
def _kept(
    base: float,
    dims: int,
    half: int,
    start: int,
    length: int,
    device: torch.device,
    inference: bool,
) -> tuple[Tensor, Tensor]:
    """`inference` is part of the key because a tensor made in inference mode is of no use outside
    it.
    """
    return _angles(base, dims, half, start, length, device)


def _angles(
    base: float, dims: int, half: int, start: int, length: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    exponents = torch.arange(half, dtype=torch.float64, device=device) * (-2.0 / dims)
    positions = torch.arange(start, start + length, dtype=torch.float64, device=device)
    angles = positions[:, None] * base**exponents
    return angles.cos().float(), angles.sin().float()


def rotate(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate the first R dims of x (B, T, H, E) as two halves (a, b): (a cos + b sin, -a sin + b
    cos).
    """
    cos, sin = (t[:, None].to(x.dtype) for t in table)  # (T, 1, R/2)
    half = cos.shape[-1]
    if half == 0:
        return x
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat([a * cos + b * sin, b * cos - a * sin, rest], dim=-1)
