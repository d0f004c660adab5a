"""The model's equations in plain torch: what each part gives is what its component says.

Everything faster is another form of the same (see `niblick.model.kernels`) and is tested against
this one.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from niblick.components import (
    BIGRAM,
    MIXERS,
    MLP,
    RESIDUAL_MIX,
    SIDECAR,
    SKIPS,
    SMEAR,
    VALUE_EMBEDDING,
    Call,
    VirtualLayer,
)
from niblick.components.embedding import EMBEDDING
from niblick.components.functional import nll, rms
from niblick.model.tree import Node


class Equations:
    """A model's parts, between which `LanguageModel.hidden` is the loop.

    `fuses_heads`: `head_loss` is also the best form of further heads.
    """

    fuses_heads = False

    def takes(self, call: Call) -> bool:
        """Whether it computes this call, which has no state before or after it."""
        return True

    def embed(self, call: Call) -> Tensor:
        """x0 (B, T, D) = smear(rms(token + bigram))."""
        root, model = call.root, call.model
        x = EMBEDDING.forward(root, call)
        if BIGRAM.used(model):
            x = x + BIGRAM.forward(root, call)
        x = rms(x).to(call.dtype)
        return SMEAR.forward(root, x, call) if SMEAR.used(model) else x

    def values(self, call: Call) -> Tensor | None:
        """The value embedding (B, T, G*E) before a layer's scale."""
        return (
            VALUE_EMBEDDING.forward(call.root, call) if VALUE_EMBEDDING.used(call.model) else None
        )

    def block(self, layer: VirtualLayer, x: Tensor, x0: Tensor, call: Call) -> Tensor:
        """x = mix(x, x0); x = x + a * mixer(s * rms(x)); x = x + b * mlp(s * rms(x))."""
        (block, scalars), s = weights_of(layer, call), layer.scale
        a: Tensor = scalars.attn_scale.to(x.dtype)
        b: Tensor = scalars.mlp_scale.to(x.dtype)
        if call.model.residual_mix.enabled:
            x = RESIDUAL_MIX.forward(scalars, x, x0)
        x = x + a * MIXERS[layer.mixer].forward(block, s * rms(x), layer, call)
        return x + b * MLP.forward(block, s * rms(x), call.model)

    def pop(self, layer: VirtualLayer, x: Tensor, skip: Tensor, call: Call) -> Tensor:
        """x + w * skip, before a layer."""
        assert layer.pop is not None
        return SKIPS.forward(call.root, x, skip, layer.pop)

    def sidecar(self, site: int, x: Tensor, call: Call) -> Tensor:
        """x + what the sidecar adds, after a layer."""
        return SIDECAR.forward(call.root, x, site, call)

    def finish(self, x: Tensor, call: Call) -> Tensor:
        """The hidden state that the head reads: rms(x)."""
        return rms(x)

    def head_loss(
        self, hidden: Tensor, weight: Tensor, targets: Tensor, cap: float | None
    ) -> Tensor:
        """The mean of -ln p(target) of the logits softcap(hidden @ weight.T), float32.

        hidden (B, T, D), weight (V, D) of any float type.
        """
        return nll(softcap(F.linear(hidden, weight.to(hidden.dtype)), cap), targets).mean()


def weights_of(layer: VirtualLayer, call: Call) -> tuple[Node, Node]:
    """A layer's block, and what holds its scales and its residual mix."""
    root = call.root
    return cast(Node, root.get_submodule(layer.block)), root.get_submodule(layer.scalars)


def softcap(z: Tensor, cap: float | None) -> Tensor:
    """c tanh(z / c), or z without a cap."""
    return z if cap is None else cap * torch.tanh(z.float() / cap)
