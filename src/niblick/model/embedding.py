"""What turns tokens into the first hidden state: token and hashed bigram embedding, norm, smear."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, sigmoid
from torch.nn import functional as F

from niblick.model.mixers.base import Context
from niblick.model.state import NO_TOKEN
from niblick.model.tree import Node


def bigram_index(tokens: Tensor, before: Tensor, buckets: int) -> Tensor:
    """((36313 t) xor (27191 t_before)) mod (M-1) in int32 arithmetic, M-1 where there is no token before."""
    mixed = torch.bitwise_xor(36313 * tokens.int(), 27191 * before.int())
    index = torch.remainder(mixed.long(), buckets - 1)
    return torch.where(before == NO_TOKEN, buckets - 1, index)


def embed(root: Node, context: Context) -> Tensor:
    """tokens (B, T) -> x0 (B, T, D): smear(rms(tok_emb + bigram))."""
    tokens, model = context.tokens, context.model
    x = context.dropped("token", F.embedding(tokens, root.tok_emb.weight))
    if model.bigram.enabled:
        x = x + context.dropped("bigram", _bigram(root, context))
    x = context.ops.mix_norm(x, x, None, 1.0)[1].to(context.dtype)
    if model.smear.enabled:
        context.remember("smear.last", x[:, -1])
        x = context.ops.smear(x, context.last("smear.last"), context.boundary, sigmoid(root.smear.gate))
    return x


def value_embed(root: Node, context: Context) -> Tensor | None:
    """The value embedding (B, T, G*E) before its per-layer scale, None when switched off."""
    if not context.model.value_embedding.enabled:
        return None
    return context.dropped("value_embedding", root.ve_proj(F.embedding(context.tokens, root.ve_embed.weight)))


def _bigram(root: Node, context: Context) -> Tensor:
    tokens = context.tokens
    last = context.last("bigram.last")
    if last is None:
        last = torch.full((tokens.shape[0], 1), NO_TOKEN, dtype=torch.int64, device=tokens.device)
    before = torch.cat([last, tokens[:, :-1]], dim=1)
    if context.boundary is not None:
        before = before.masked_fill(context.boundary, NO_TOKEN)
    context.remember("bigram.last", tokens[:, -1:].long())
    rows = F.embedding(bigram_index(tokens, before, context.model.bigram.buckets), root.bigram.embed.weight)
    return cast(Tensor, root.bigram.scale.to(rows.dtype) * root.bigram.proj(rows))
