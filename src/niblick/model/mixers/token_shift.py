"""Token shift (systems.md section 1): a gated channel mix of each position with the one before
it.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from niblick.model.mixers.base import MIXERS, Context
from niblick.model.tree import Node
from niblick.plan import VirtualLayer


@MIXERS.register("token-shift")
def token_shift(block: nn.Module, u: Tensor, layer: VirtualLayer, context: Context) -> Tensor:
    """u (B, T, D) -> sigmoid(W_r r) * (W_v relu(W_k k)^2), r and k interpolating u and prev(u)."""
    weights = cast(Node, block).mixer
    name = f"layers.{layer.index}.shift"
    context.remember(name, u[:, -1])
    maps = weights.W_r, weights.W_k, weights.W_v
    return context.ops.token_shift(
        u, context.last(name), context.boundary, (weights.mix_r, weights.mix_k), maps
    )
