"""Attention for accelerators: torch's flex_attention over block masks that are built, not searched.

A block mask says which blocks of keys a block of queries sees at all, and which it sees whole. Both
follow from the window and from where each position's document begins, by block, so no mask of all
positions by all positions is ever made. Fewer key heads than query heads are not repeated.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from niblick.model.graphs import one_graph

BLOCK = 128
LEAST_WIDTH = 16  # of a head, for flex_attention's kernels


class Attend:
    """Attention of one call: `attend(q, k, v, span)`; masks are made once per span.

    `first` (B, T): the first position of each position's document; it never falls from one
    position to the next. None where attention runs across documents.
    """

    def __init__(self, first: Tensor | None = None) -> None:
        self._first = first
        self._masks: dict[int, BlockMask] = {}

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, span: int) -> Tensor:
        """q (B, H, T, E), k and v (B, G, T, E) -> (B, H, T, E), causal, `span` newest positions."""
        length = q.shape[2]
        if self._first is None and length <= span:
            fewer = q.shape[1] != k.shape[1]
            if fewer and q.dtype == torch.float32:  # no fused kernel of CUDA takes both
                k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))
                fewer = False
            return F.scaled_dot_product_attention(q, k, v, is_causal=length > 1, enable_gqa=fewer)
        if span not in self._masks:
            self._masks[span] = self._mask(span, length, q.device)
        return flex(q, k, v, self._masks[span])

    def _mask(self, span: int, length: int, device: torch.device) -> BlockMask:
        if self._first is not None:
            return block_mask(span, length, device, self._first)
        if torch.compiler.is_compiling():  # a few numbers, once per graph
            return block_mask(span, length, device)
        return _kept_mask(span, length, device)


@lru_cache(maxsize=8)
def _kept_mask(span: int, length: int, device: torch.device) -> BlockMask:
    return block_mask(span, length, device)


def block_mask(
    span: int, length: int, device: torch.device, first: Tensor | None = None
) -> BlockMask:
    """The mask of causal attention over the `span` newest positions, from `first` (B, T) on."""
    steps = torch.arange(-(-length // BLOCK), device=device)
    begins = steps * BLOCK  # the first query of each block
    ends = (begins + BLOCK - 1).clamp(max=length - 1)
    # The earliest key that the first and the last query of a block see.
    low, high = ((at - span + 1).clamp(min=0)[None] for at in (begins, ends))
    if first is not None:
        low, high = torch.maximum(low, first[:, begins]), torch.maximum(high, first[:, ends])
    own, seen = steps[None], low // BLOCK  # of keys: the block itself, the first seen at all
    whole = torch.minimum((high + BLOCK - 1) // BLOCK, own)  # the first that every query sees whole
    before = (whole - seen)[..., None]  # blocks seen in part, in front of whole ones
    partly = torch.where(steps < before, seen[..., None] + steps, own[..., None])
    return BlockMask.from_kv_blocks(
        *_listed(whole - seen + 1, partly),
        *_listed(own - whole, whole[..., None] + steps),
        BLOCK_SIZE=BLOCK,
        mask_mod=_rule(span, first),
        seq_lengths=(length, length),
    )


def _listed(counts: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """Counts (B, N) and indices (B, N, N) as flex_attention has them, for all heads."""
    last = indices.shape[-1] - 1
    return counts[:, None].int(), indices.clamp(0, last)[:, None].int()


def _rule(span: int, first: Tensor | None) -> Callable[..., Tensor]:
    """Whether a query sees a key, by their positions."""

    def banded(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (key > query - span)

    def within(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        assert first is not None
        return (key <= query) & (key > query - span) & (key >= first[b, query])

    return banded if first is None else within


def flex(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask) -> Tensor:
    """flex_attention, compiled wherever a compiled form is to be had."""
    attend = flex_attention
    if q.device.type == "cuda" and not torch.compiler.is_compiling():
        attend = _compiled()
    out: Any = attend(q, k, v, block_mask=mask, enable_gqa=q.shape[1] != k.shape[1])
    return out  # type: ignore[no-any-return]


@cache
def _compiled() -> Any:
    """Alone, flex_attention would compute all scores."""
    return one_graph(flex_attention)
