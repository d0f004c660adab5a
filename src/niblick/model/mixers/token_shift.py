"""Token shift (systems.md section 1): a gated channel mix of each position with the one before it."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn, sigmoid
from torch.nn import functional as F

from niblick.model.mixers.base import MIXERS, Context
from niblick.model.shift import previous
from niblick.model.tree import Node
from niblick.plan import VirtualLayer


@MIXERS.register("token-shift")
def token_shift(block: nn.Module, u: Tensor, layer: VirtualLayer, context: Context) -> Tensor:
    """u (B, T, D) -> sigmoid(W_r r) * (W_v relu(W_k k)^2), r and k interpolating u and prev(u)."""
    weights = cast(Node, block).mixer
    name = f"layers.{layer.index}.shift"
    before = previous(u, context.last(name), context.boundary)
    context.remember(name, u[:, -1])
    receive = before.lerp(u, sigmoid(weights.mix_r).to(u.dtype))
    key = before.lerp(u, sigmoid(weights.mix_k).to(u.dtype))
    gated: Tensor = sigmoid(weights.W_r(receive)) * weights.W_v(F.relu(weights.W_k(key)).square())
    return gated
