"""What turns tokens into the first hidden state: token and hashed bigram embedding, norm, smear."""

from __future__ import annotations

import torch
from torch import Tensor, sigmoid

from niblick.model.mixers.base import Context
from niblick.model.ops import dropped
from niblick.model.state import NO_TOKEN
from niblick.model.tree import Linear, Node


def bigram_index(tokens: Tensor, before: Tensor, buckets: int) -> Tensor:
    """((36313 t) xor (27191 t_before)) mod (M-1) in int32 arithmetic, M-1 where there is no token
    before.
    """
    mixed = torch.bitwise_xor(36313 * tokens.int(), 27191 * before.int())
    index = torch.remainder(mixed.long(), buckets - 1)
    return torch.where(before == NO_TOKEN, buckets - 1, index)


def embed(root: Node, context: Context) -> Tensor:
    """tokens (B, T) -> x0 (B, T, D): smear(rms(tok_emb + bigram))."""
    tokens, model, bigram = context.tokens, context.model, context.model.bigram.enabled
    branch, share = (_bigram(root, context), root.bigram.scale) if bigram else (None, None)
    factors = context.factors.get("token"), context.factors.get("bigram")
    x = context.ops.embed(tokens.long(), root.tok_emb.weight, context.dtype, branch, share, factors)
    if model.smear.enabled:
        context.remember("smear.last", x[:, -1])
        x = context.ops.smear(
            x, context.last("smear.last"), context.boundary, sigmoid(root.smear.gate)
        )
    return x


def value_embed(root: Node, context: Context) -> Tensor | None:
    """The value embedding (B, T, G*E) before its per-layer scale, None when switched off."""
    if not context.model.value_embedding.enabled:
        return None
    values = _mapped(context, context.tokens.long(), root.ve_embed.weight, root.ve_proj)
    return dropped(values, context.factors.get("value_embedding"))


def _bigram(root: Node, context: Context) -> Tensor:
    """The row of each token pair, through its projection where it has one, (B, T, D)."""
    tokens = context.tokens
    last = context.last("bigram.last")
    if last is None:
        last = torch.full((tokens.shape[0], 1), NO_TOKEN, dtype=torch.int64, device=tokens.device)
    before = torch.cat([last, tokens[:, :-1]], dim=1)
    if context.boundary is not None:
        before = before.masked_fill(context.boundary, NO_TOKEN)
    context.remember("bigram.last", tokens[:, -1:].long())
    ids = bigram_index(tokens, before, context.model.bigram.buckets)
    if not context.model.bigram.projection:
        return context.ops.lookup(ids, root.bigram.embed.weight, context.dtype)
    return _mapped(context, ids, root.bigram.embed.weight, root.bigram.proj)


def _mapped(context: Context, ids: Tensor, table: Tensor, linear: Linear) -> Tensor:
    """Rows of a table through a linear map."""
    return context.ops.maps(context.ops.lookup(ids, table, linear.weight.dtype), (linear,))[0]
