"""Grouped-query attention (systems.md sections 1-3), windowed or over the declared context."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from niblick.model.banded import banded_attention
from niblick.model.mixers.base import MIXERS, Context
from niblick.model.rotary import rotate
from niblick.model.tree import Node
from niblick.plan import VirtualLayer


@MIXERS.register("full")
@MIXERS.register("window")
def attention(block: nn.Module, u: Tensor, layer: VirtualLayer, context: Context) -> Tensor:
    """u (B, T, D) -> W_o of the heads' outputs; see the spec for each optional part, in its
    order.
    """
    model, weights = context.model, cast(Node, block).attn
    batch, length, dim = u.shape
    heads, width = model.attention.heads, model.head_dim
    maps, gains = (weights.c_q, weights.c_k, weights.c_v), _gains(layer, context)
    span = layer.span if layer.mixer == "window" else context.span_limit
    alone = (
        not context.keep
        and context.before is None
        and context.document_first is None
        and model.attention.qk_norm
    )
    if alone and not model.attention.kv_shift:
        q, k, v = context.ops.project(u, maps, gains, context.rotary, width)
        v = _embedded(v, layer, context)
        y = context.ops.attend(q, k, v, span)
    else:
        q, k, v = (each.view(batch, length, -1, width) for each in context.ops.maps(u, maps))
        k, v = _shifted(weights, k, _embedded(v, layer, context), layer, context)
        if alone:
            q, k = (
                context.ops.heads(x, gain, context.rotary)
                for x, gain in zip((q, k), gains, strict=True)
            )
            y = context.ops.attend(q, k, v, span)
        else:
            y = _attend(
                _turned(q, gains[0], context),
                _turned(k, gains[1], context),
                v,
                span,
                layer,
                context,
            )
    y = y.reshape(batch, length, heads, width)
    if model.attention.local_value:
        y = context.ops.local_value(y, v, weights.local_v_mix)
    if layer.xsa:
        y = context.ops.exclude(y, v)
    return context.ops.maps(y.reshape(batch, length, dim), (weights.proj,))[0]


def _gains(layer: VirtualLayer, context: Context) -> tuple[Tensor | None, Tensor | None]:
    """Of queries and keys, where the recipe has them."""
    options, found = context.model.attention, cast(Node, context.root.get_submodule(layer.gains))
    return (
        found.q_gain if options.q_gain is not None else None,
        found.k_gain if options.k_gain else None,
    )


def _embedded(v: Tensor, layer: VirtualLayer, context: Context) -> Tensor:
    """v (B, T, G, E) with the value embedding added, where the layer has it."""
    if not layer.value_embedding or context.value_embedding is None:
        return v
    scale = cast(Tensor, context.root.get_parameter(f"ve_scales.{layer.index}"))
    flat = v.flatten(2)
    return context.ops.add(
        flat, context.value_embedding.to(v.dtype), scale.expand(flat.shape[-1])
    ).view(v.shape)


def _shifted(
    weights: Node, k: Tensor, v: Tensor, layer: VirtualLayer, context: Context
) -> tuple[Tensor, Tensor]:
    """k and v (B, T, G, E), x + mix * prev(x) each, where the recipe says so; mix (G,)."""
    if not context.model.attention.kv_shift:
        return k, v
    found = []
    for name, x, mix in (("k_shift", k, weights.k_shift_mix), ("v_shift", v, weights.v_shift_mix)):
        name = f"layers.{layer.index}.{name}"
        found.append(context.ops.shift_mix(x, context.last(name), context.boundary, mix))
        context.remember(name, x[:, -1].flatten(1))
    return found[0], found[1]


def _turned(x: Tensor, gain: Tensor | None, context: Context) -> Tensor:
    """Queries or keys (B, T, heads, E), normalised where the recipe says so, rotated and scaled."""
    if context.model.attention.qk_norm:
        return context.ops.normed_heads(x, gain, context.rotary)
    x = rotate(x, context.rotary)
    return x if gain is None else x * gain.to(x.dtype)[:, None]


def _attend(
    q: Tensor, k: Tensor, v: Tensor, span: int, layer: VirtualLayer, context: Context
) -> Tensor:
    """Softmax attention over the ring and the call's own positions; (B, T, H, E) in and out."""
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))  # (B, H or G, T, E)
    first = None
    if context.before is not None:
        prefix = f"layers.{layer.index}"
        k = torch.cat([context.before.tensors[f"{prefix}.keys"].to(k.dtype), k], dim=2)
        v = torch.cat([context.before.tensors[f"{prefix}.values"].to(v.dtype), v], dim=2)
    past = k.shape[2] - q.shape[2]
    if context.document_first is not None:
        first = context.document_first - context.position + past
    _remember_ring(k, v, span, layer, context)
    repeat = q.shape[1] // k.shape[1]
    if repeat > 1:
        k, v = (t.repeat_interleave(repeat, dim=1) for t in (k, v))
    valid = min(context.position, past)
    return banded_attention(q, k, v, span, valid, first).transpose(1, 2)


def _remember_ring(k: Tensor, v: Tensor, span: int, layer: VirtualLayer, context: Context) -> None:
    """The newest `span` keys and values, zeros in front while there are fewer."""
    if not context.keep:
        return
    for name, t in (("keys", k), ("values", v)):
        kept = t[:, :, -span:] if t.shape[2] >= span else F.pad(t, (0, 0, span - t.shape[2], 0))
        context.remember(f"layers.{layer.index}.{name}", kept)
