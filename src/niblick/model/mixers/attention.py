"""Grouped-query attention (systems.md sections 1-3), windowed or over the declared context."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from niblick.model.banded import banded_attention
from niblick.model.mixers.base import MIXERS, Context
from niblick.model.rotary import rotate
from niblick.model.shift import previous
from niblick.model.tree import Node
from niblick.plan import VirtualLayer


@MIXERS.register("full")
@MIXERS.register("window")
def attention(block: nn.Module, u: Tensor, layer: VirtualLayer, context: Context) -> Tensor:
    """u (B, T, D) -> W_o of the heads' outputs; see the spec for each optional part, in its order."""
    model, weights = context.model, cast(Node, block).attn
    gains = cast(Node, context.root.get_submodule(layer.gains))
    batch, length, dim = u.shape
    heads, groups, width = model.attention.heads, model.attention.kv_heads, model.head_dim
    q = weights.c_q(u).view(batch, length, heads, width)
    k, v = _keys_values(weights, u, layer, context)
    q_gain = gains.q_gain if model.attention.q_gain is not None else None
    k_gain = gains.k_gain if model.attention.k_gain else None
    span = layer.span if layer.mixer == "window" else context.span_limit
    alone = not context.keep and context.before is None and context.document_first is None
    if alone and model.attention.qk_norm:
        y = context.ops.attention(q, k, v, q_gain, k_gain, context.rotary, span)
    else:
        q, k = _turned(q, q_gain, context), _turned(k, k_gain, context)
        y = _attend(q, k, v, span, layer, context)
    y = y.reshape(batch, length, heads, width)
    if model.attention.local_value:
        local = weights.local_v_mix.to(y.dtype).view(groups, -1, 1) * v.unsqueeze(3)  # (B, T, G, H/G, E)
        y = y + local.view(y.shape)
    if layer.xsa:
        y = context.ops.exclude(y, v)
    out: Tensor = weights.proj(y.reshape(batch, length, dim))
    return out


def _keys_values(weights: Node, u: Tensor, layer: VirtualLayer, context: Context) -> tuple[Tensor, Tensor]:
    """k and v (B, T, G, E): value embedding added, then both mixed with the position before."""
    k, v = weights.c_k(u), weights.c_v(u)
    if layer.value_embedding and context.value_embedding is not None:
        scale = cast(Tensor, context.root.get_parameter(f"ve_scales.{layer.index}"))
        v = v + scale.to(v.dtype) * context.value_embedding.to(v.dtype)
    groups, width = context.model.attention.kv_heads, context.model.head_dim
    if context.model.attention.kv_shift:
        k = _shifted(k, weights.k_shift_mix, f"layers.{layer.index}.k_shift", context)
        v = _shifted(v, weights.v_shift_mix, f"layers.{layer.index}.v_shift", context)
    return k.view(*k.shape[:2], groups, width), v.view(*v.shape[:2], groups, width)


def _shifted(x: Tensor, mix: Tensor, name: str, context: Context) -> Tensor:
    """x + mix * prev(x) for x (B, T, G*E), mix (G,)."""
    before = previous(x, context.last(name), context.boundary)
    context.remember(name, x[:, -1])
    return x + mix.to(x.dtype).repeat_interleave(context.model.head_dim) * before


def _turned(x: Tensor, gain: Tensor | None, context: Context) -> Tensor:
    """Queries or keys (B, T, heads, E), normalised where the recipe says so, rotated and scaled."""
    if context.model.attention.qk_norm:
        return context.ops.normed_heads(x, gain, context.rotary)
    x = rotate(x, context.rotary)
    return x if gain is None else x * gain.to(x.dtype)[:, None]


def _attend(q: Tensor, k: Tensor, v: Tensor, span: int, layer: VirtualLayer, context: Context) -> Tensor:
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
