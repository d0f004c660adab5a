"""Causal attention in which position i sees the `span` newest positions up to itself.

`banded_attention` is linear in T: it cuts queries into blocks of the band's width and pairs each
with the two blocks of keys that it can reach; wide bands are walked in short steps instead, each
over just the keys it reaches. `reference_attention` is the readable masked form that both must
equal. Earlier positions come from a ring of `span` keys, of which the newest `valid` hold
something.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_STEP = 256  # queries of one step along a wide band


def reference_attention(
    q: Tensor, k: Tensor, v: Tensor, span: int, valid: int = 0, first: Tensor | None = None
) -> Tensor:
    """q (B, H, T, E) over k, v (B, H, P+T, E) whose first P positions precede the queries (newest
    `valid` real).

    `first` (B, T): the earliest key that each query may see, as an index into k; None for no such
    limit.
    """
    past = k.shape[2] - q.shape[2]
    query = torch.arange(past, k.shape[2], device=q.device)[:, None]
    key = torch.arange(k.shape[2], device=q.device)[None, :]
    seen = (key <= query) & (key > query - span) & (key >= past - valid)
    mask = seen[None, None]
    if first is not None:
        mask = mask & (key[None, None] >= first[:, None, :, None])
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def banded_attention(
    q: Tensor, k: Tensor, v: Tensor, span: int, valid: int = 0, first: Tensor | None = None
) -> Tensor:
    """The same numbers as `reference_attention`, choosing the cheaper form by shape."""
    length, past = q.shape[2], k.shape[2] - q.shape[2]
    if past == 0 and first is None and length <= span:
        return F.scaled_dot_product_attention(q, k, v, is_causal=length > 1)
    reach = span - 1
    if reach >= _STEP and length > _STEP:
        return stepped_attention(q, k, v, span, valid, first)
    if reach == 0 or length <= 2 * reach:
        return reference_attention(q, k, v, span, valid, first)
    return _blocked(q, k, v, reach, valid, first)


def stepped_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    span: int,
    valid: int = 0,
    first: Tensor | None = None,
    step: int = _STEP,
) -> Tensor:
    """The same numbers as `reference_attention`, `step` queries at a time against views of the keys
    in reach.
    """
    length, past = q.shape[2], k.shape[2] - q.shape[2]
    outputs, masks = [], {}
    for start in range(0, length, step):
        end = min(start + step, length)
        low, high = max(past + start - span + 1, past - valid), past + end
        shape = (end - start, past + start - low, high - low)
        if shape not in masks:
            masks[shape] = _step_mask(*shape, span, q)
        mask = masks[shape]
        if first is not None:
            seen = torch.arange(low, high, device=q.device) >= first[:, None, start:end, None]
            mask = mask.masked_fill(~seen, float("-inf"))
        outputs.append(
            F.scaled_dot_product_attention(
                q[:, :, start:end], k[:, :, low:high], v[:, :, low:high], attn_mask=mask
            )
        )
    return torch.cat(outputs, dim=2)


def _step_mask(rows: int, ahead: int, keys: int, span: int, like: Tensor) -> Tensor:
    """(rows, keys) to add to scores: row i stands at key ahead + i and sees the newest `span` keys
    up to itself.
    """
    query = torch.arange(rows, device=like.device)[:, None] + ahead
    key = torch.arange(keys, device=like.device)[None, :]
    hidden = (key > query) | (key <= query - span)
    return torch.zeros(rows, keys, dtype=like.dtype, device=like.device).masked_fill(
        hidden, float("-inf")
    )


def _blocked(
    q: Tensor, k: Tensor, v: Tensor, reach: int, valid: int, first: Tensor | None
) -> Tensor:
    """Blocks of `reach` queries against 2 * reach keys each; local query i sees local keys i .. i +
    reach.
    """
    batch, heads, length, width = q.shape
    blocks = -(-length // reach)
    past = k.shape[2] - length
    queries = F.pad(q, (0, 0, 0, blocks * reach - length)).view(batch, heads, blocks, reach, width)
    keys, values = (_paired(_aligned(t, past, reach, blocks), reach) for t in (k, v))
    mask = _block_mask(reach, blocks, min(valid, reach), q.device)
    if first is not None:
        mask = mask & _first_mask(first - past + reach, reach, blocks)
    q2, k2, v2 = (
        t.transpose(1, 2).reshape(batch * blocks, heads, -1, width) for t in (queries, keys, values)
    )
    mask = mask.expand(batch, blocks, reach, 2 * reach).reshape(batch * blocks, 1, reach, 2 * reach)
    out = F.scaled_dot_product_attention(q2, k2, v2, attn_mask=mask)
    out = out.view(batch, blocks, heads, reach, width).transpose(1, 2)
    return out.reshape(batch, heads, blocks * reach, width)[:, :, :length]


def _aligned(t: Tensor, past: int, reach: int, blocks: int) -> Tensor:
    """Keep exactly `reach` earlier positions (zeros where there are fewer) and fill the last
    block.
    """
    if past > reach:
        t = t[:, :, past - reach :]
    front = max(reach - past, 0)
    return F.pad(t, (0, 0, front, (blocks + 1) * reach - front - t.shape[2]))


def _paired(t: Tensor, reach: int) -> Tensor:
    """(B, H, (n+1) reach, E) -> (B, H, n, 2 reach, E): each block with the one before it."""
    cut = t.view(t.shape[0], t.shape[1], -1, reach, t.shape[3])
    return torch.cat([cut[:, :, :-1], cut[:, :, 1:]], dim=3)


def _block_mask(reach: int, blocks: int, valid: int, device: torch.device) -> Tensor:
    """(n, reach, 2 reach): the band, without the empty part of the ring in the first block."""
    query = torch.arange(reach, device=device)[:, None]
    key = torch.arange(2 * reach, device=device)[None, :]
    band = (key >= query) & (key <= query + reach)
    mask = band.expand(blocks, reach, 2 * reach).clone()
    mask[0] &= key >= reach - valid
    return mask


def _first_mask(first: Tensor, reach: int, blocks: int) -> Tensor:
    """(B, n, reach, 2 reach) from the earliest visible key (B, T), counted from the aligned
    front.
    """
    padded = F.pad(first, (0, blocks * reach - first.shape[1])).view(
        first.shape[0], blocks, reach, 1
    )
    starts = torch.arange(blocks, device=first.device)[None, :, None, None] * reach
    return starts + torch.arange(2 * reach, device=first.device) >= padded
