"""Operators of attention: its inputs, itself, and exclusion of the own value.

One fused pass where the kernels multiply (products.h, floats.h), tiles of products elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from niblick.model.kernels.library import LANES
from niblick.model.kernels.operators import (
    Run,
    floats,
    fold,
    head_sizes,
    like,
    operator,
    partial_sums,
)

TILE = 64  # queries of one attention tile
WIDTHS = range(16, 129, 16)  # head widths that the fused pass takes


@operator(
    "heads(Tensor x, Tensor? gain, Tensor cosine, Tensor sine) -> (Tensor out, Tensor inverse)"
)
def _heads(
    run: Run, x: Tensor, gain: Tensor | None, cosine: Tensor, sine: Tensor
) -> tuple[Tensor, Tensor]:
    """gain * rotate(rms(x)): x (B, T, H, E) -> (B, H, T, E)."""
    batch, length, heads, width = x.shape
    out, inverse = x.new_empty(batch, heads, length, width), floats(x, batch, length, heads)
    ends = (batch * length, length, heads, cosine.shape[-1], width)
    run("heads", x.dtype, x, cosine, sine, gain, out, inverse, *ends)
    return out, inverse


@operator(
    "heads_back(Tensor gout, Tensor x, Tensor? gain, Tensor cosine, Tensor sine, Tensor inverse)"
    " -> (Tensor gx, Tensor ggain)"
)
def _heads_back(
    run: Run,
    g: Tensor,
    x: Tensor,
    gain: Tensor | None,
    cosine: Tensor,
    sine: Tensor,
    inverse: Tensor,
) -> tuple[Tensor, Tensor]:
    (batch, length, heads, width), gx = x.shape, torch.empty_like(x)
    sums, ends = partial_sums(x, heads), (batch * length, length, heads, cosine.shape[-1], width)
    run("heads_back", x.dtype, g, x, cosine, sine, gain, inverse, gx, sums, *ends)
    return gx, fold(run, sums)


_PROJECT = "Tensor? q_gain, Tensor? k_gain, Tensor cosine, Tensor sine"


def _project_sizes(
    x: Tensor, cosine: Tensor, heads: int, groups: int, width: int
) -> tuple[int, ...]:
    batch, length, dim = x.shape
    return heads, groups, batch * length, dim, length, cosine.shape[-1], width


@operator(
    f"project(Tensor x, Tensor whole, {_PROJECT}, int heads, int groups, int width) -> (Tensor q,"
    " Tensor k, Tensor v, Tensor raw_q, Tensor raw_k, Tensor inverse_q, Tensor inverse_k)"
)
def _project(
    run: Run,
    x: Tensor,
    whole: Tensor,
    q_gain: Tensor | None,
    k_gain: Tensor | None,
    cosine: Tensor,
    sine: Tensor,
    heads: int,
    groups: int,
    width: int,
) -> tuple[Tensor, ...]:
    """`heads` of queries (B, H, T, E) and keys (B, G, T, E), and values (B, T, G, E) (maps.h).

    The three matrices lie one below the other in `whole`.
    """
    batch, length, _ = x.shape
    raw_q, raw_k, v = (x.new_empty(batch, length, n, width) for n in (heads, groups, groups))
    rotated = [x.new_empty(batch, n, length, width) for n in (heads, groups)]
    inverses = [floats(x, batch, length, n) for n in (heads, groups)]
    inputs, results = (x, whole, cosine, sine, q_gain, k_gain), (raw_q, raw_k, *rotated, v)
    ends = _project_sizes(x, cosine, heads, groups, width)
    run("project", x.dtype, *inputs, *results, *inverses, *ends)
    return *rotated, v, raw_q, raw_k, *inverses


@operator(
    f"project_back(Tensor gq, Tensor gk, Tensor gv, Tensor x, Tensor whole, {_PROJECT},"
    " Tensor raw_q, Tensor raw_k, Tensor inverse_q, Tensor inverse_k, int heads, int groups,"
    " int width) -> (Tensor gx, Tensor gwhole, Tensor gq_gain, Tensor gk_gain)"
)
def _project_back(run: Run, *arguments: Any) -> tuple[Tensor, ...]:
    *grads, x, whole, q_gain, k_gain, cosine, sine = arguments[:9]
    kept, (heads, groups, width) = arguments[9:13], arguments[13:]
    ends = _project_sizes(x, cosine, heads, groups, width)
    gx, gwhole = like(x, whole)
    sums = [floats(x, -(-ends[2] // LANES), n) for n in (heads, groups)]
    inputs = (x, whole, cosine, sine, q_gain, k_gain, *kept)
    run("project_back", x.dtype, *grads, *inputs, gx, gwhole, *sums, *ends)
    return gx, gwhole, *(fold(run, each) for each in sums)


@operator("exclude(Tensor y, Tensor v) -> Tensor out")
def _exclude(run: Run, y: Tensor, v: Tensor) -> Tensor:
    """y (B, T, H, E) without its part along the value (B, T, G, E) of its own position."""
    out = torch.empty_like(y)
    run("exclude", y.dtype, y, v, out, *head_sizes(y, v))
    return out


@operator("exclude_back(Tensor gout, Tensor y, Tensor v) -> (Tensor gy, Tensor gv)")
def _exclude_back(run: Run, g: Tensor, y: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    gy, gv = like(y, v)
    run("exclude_back", y.dtype, g, y, v, gy, gv, *head_sizes(y, v))
    return gy, gv


@operator(
    "attend(Tensor q, Tensor k, Tensor v, Tensor? first, int span) -> (Tensor y, Tensor log_sum)"
)
def _attend(
    run: Run, q: Tensor, k: Tensor, v: Tensor, first: Tensor | None, span: int
) -> tuple[Tensor, Tensor]:
    """Softmax attention over the `span` newest positions, in one pass (attention.h).

    q (B, H, T, E), k (B, G, T, E), v (B, T, G, E) -> (B, T, H, E); `first` (B, T), which does not
    fall: the earliest position that each sees.
    """
    batch, heads, length, width = q.shape
    y, log_sum = q.new_empty(batch, length, heads, width), floats(q, batch, heads, length)
    ends = (batch, heads, k.shape[1], length, span, width)
    run("attend", q.dtype, q, k, v, first, y, log_sum, *ends)
    return y, log_sum


@operator(
    "attend_back(Tensor gy, Tensor q, Tensor k, Tensor v, Tensor? first, Tensor y, Tensor log_sum,"
    " int span) -> (Tensor gq, Tensor gk, Tensor gv)"
)
def _attend_back(
    run: Run,
    g: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    first: Tensor | None,
    y: Tensor,
    log_sum: Tensor,
    span: int,
) -> tuple[Tensor, ...]:
    (batch, heads, length, width), found = q.shape, like(q, k, v)
    ends = (batch, heads, k.shape[1], length, span, width)
    run("attend_back", q.dtype, q, k, v, first, y, log_sum, g, *found, *ends)
    return tuple(found)


@operator(
    "attend_tiles(Tensor q, Tensor k, Tensor v, Tensor? first, int span) -> (Tensor y,"
    " Tensor weights)"
)
def _attend_tiles(
    run: Run, q: Tensor, k: Tensor, v: Tensor, first: Tensor | None, span: int
) -> tuple[Tensor, Tensor]:
    """`attend` by tiles of queries, each against the keys that it can see.

    The heads that share keys are one product. `weights` holds every tile's softmax.
    """
    batch, heads, length, width = q.shape
    groups, repeat = k.shape[1], heads // k.shape[1]
    q = q.view(batch * groups, repeat, length, width)
    k = k.view(batch * groups, length, width)
    v = v.transpose(1, 2).reshape(batch * groups, length, width)
    y = q.new_empty(batch, length, heads, width)
    out = y.view(batch, length, groups, repeat, width).permute(0, 2, 3, 1, 4)
    weights = q.new_empty(sum(t.size for t in _tiles(q, span)))
    begins = q.new_zeros(1, length) if first is None else first.repeat_interleave(groups, dim=0)
    begins = begins.int()
    for tile in _tiles(q, span):
        scores = tile.of(weights)
        torch.bmm(tile.rows(q), k[:, tile.keys].mT, out=scores)
        low, high = tile.visible(begins, repeat)
        ends = (width**-0.5, scores.numel() // scores.shape[-1], low.numel(), scores.shape[-1])
        run("softmax", scores.dtype, scores, low, high, *ends)
        found = torch.bmm(scores, v[:, tile.keys])
        out[:, :, :, tile.queries] = found.view(batch, groups, repeat, -1, width)
    return y, weights


@operator(
    "attend_tiles_back(Tensor gy, Tensor q, Tensor k, Tensor v, Tensor weights, int span) ->"
    " (Tensor gq, Tensor gk, Tensor gv)"
)
def _attend_tiles_back(
    run: Run, g: Tensor, q: Tensor, k: Tensor, v: Tensor, weights: Tensor, span: int
) -> tuple[Tensor, ...]:
    batch, heads, length, width = q.shape
    groups, repeat = k.shape[1], heads // k.shape[1]
    g = g.view(batch, length, groups, repeat, width).permute(0, 2, 3, 1, 4)
    g = g.reshape(batch * groups, repeat, length, width)
    q = q.view(batch * groups, repeat, length, width)
    k = k.view(batch * groups, length, width)
    v = v.transpose(1, 2).reshape(batch * groups, length, width)
    gq, gk, gv = torch.empty_like(q), torch.zeros_like(k).float(), torch.zeros_like(v).float()
    for tile in _tiles(q, span):
        up, softmax = tile.rows(g), tile.of(weights)
        gv[:, tile.keys] += torch.bmm(softmax.mT, up)
        grad = torch.bmm(up, v[:, tile.keys].mT)
        ends = (width**-0.5, grad.numel() // grad.shape[-1], grad.shape[-1])
        run("softmax_back", grad.dtype, grad, softmax, *ends)
        found = torch.bmm(grad, k[:, tile.keys])
        gq[:, :, tile.queries] = found.view(len(q), repeat, -1, width)
        gk[:, tile.keys] += torch.bmm(grad.mT, tile.rows(q))
    gv = gv.to(v.dtype).view(batch, groups, length, width).transpose(1, 2).contiguous()
    gk = gk.to(k.dtype).view(batch, groups, length, width)
    return gq.view(batch, heads, length, width), gk, gv


class _Tile:
    """Queries start .. stop and the keys from the oldest to the newest that one of them sees."""

    def __init__(self, q: Tensor, start: int, stop: int, span: int, at: int) -> None:
        self.start, self.stop, self.span = start, stop, span
        self.low = max(0, start - span + 1)
        self.queries, self.keys = slice(start, stop), slice(self.low, stop)
        self.shape = (q.shape[0], q.shape[1] * (stop - start), stop - self.low)
        self.at, self.size = at, self.shape[0] * self.shape[1] * self.shape[2]

    def of(self, weights: Tensor) -> Tensor:
        """This tile's place (N, R * queries, keys)."""
        return weights[self.at : self.at + self.size].view(self.shape)

    def rows(self, t: Tensor) -> Tensor:
        """t (N, R, T, E) -> (N, R * queries, E)."""
        return t[:, :, self.queries].reshape(len(t), -1, t.shape[-1])

    def visible(self, begins: Tensor, repeat: int) -> tuple[Tensor, Tensor]:
        """The first key that each query sees and the one behind the last, counted from `low`.

        `begins` (N or 1, T), int32: the earliest position that each query may see.
        """
        position = torch.arange(self.start, self.stop, dtype=torch.int32, device=begins.device)
        first = torch.maximum(begins[:, self.queries], position - self.span + 1) - self.low
        last = (position + 1 - self.low).expand_as(first)
        return first[:, None].repeat(1, repeat, 1), last[:, None].repeat(1, repeat, 1)


def _tiles(q: Tensor, span: int) -> Iterator[_Tile]:
    """Tiles of q (N, R, T, E), with their places in the buffer of weights."""
    at = 0
    for start in range(0, q.shape[2], TILE):
        tile = _Tile(q, start, min(start + TILE, q.shape[2]), span, at)
        at += tile.size
        yield tile
