"""Attention on the kernels: its inputs, itself (one fused pass where the processor multiplies
bfloat16 pairs, tiles of products elsewhere) and exclusion of the own value.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from niblick.model.kernels.functions import like, partial_sums, total
from niblick.model.kernels.library import LANES, Kernels

TILE = 64  # queries of one attention tile
WIDTHS = range(16, 129, 16)  # head widths that the fused pass takes


def attend(kernels: Kernels, q: Tensor, k: Tensor, v: Tensor, span: int) -> Tensor:
    """Softmax attention over the `span` newest positions: q (B, H, T, E), k (B, G, T, E), v (B, T,
    G, E) -> (B, T, H, E).
    """
    fused = kernels.attends and q.dtype is torch.bfloat16 and q.shape[-1] in WIDTHS
    y: Tensor = (FusedAttend if fused else TiledAttend).apply(kernels, q, k, v, span)  # type: ignore[no-untyped-call]
    return y


class Heads(Function):
    """gain * rotate(rms(x)): x (B, T, H, E) -> (B, H, T, E)."""

    @staticmethod
    def forward(
        ctx: Any, kernels: Kernels, x: Tensor, gain: Tensor | None, cosine: Tensor, sine: Tensor
    ) -> Any:
        """See `Ops.heads`."""
        batch, length, heads, width = x.shape
        y, inverse = x.new_empty(batch, heads, length, width), torch.empty(batch, length, heads)
        gain = None if gain is None else gain.float().contiguous()
        sizes = (batch * length, length, heads, cosine.shape[-1], width)
        kernels("heads", x.dtype, x, cosine, sine, gain, y, inverse, *sizes)
        ctx.kernels, ctx.sizes = kernels, sizes
        ctx.save_for_backward(x, cosine, sine, gain, inverse)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        """Gradients of x and the gain."""
        x, cosine, sine, gain, inverse = ctx.saved_tensors
        gx, sums = torch.empty_like(x), partial_sums(x.shape[2])
        ctx.kernels(
            "heads_back",
            x.dtype,
            g.contiguous(),
            x,
            cosine,
            sine,
            gain,
            inverse,
            gx,
            sums,
            *ctx.sizes,
        )
        return None, gx, None if gain is None else total(ctx.kernels, sums), None, None


class Project(Function):
    """Attention's inputs: three linear maps, the first two as normed, rotated and scaled heads
    (maps.h).
    """

    @staticmethod
    def forward(
        ctx: Any,
        kernels: Kernels,
        x: Tensor,
        q_gain: Tensor | None,
        k_gain: Tensor | None,
        cosine: Tensor,
        sine: Tensor,
        width: int,
        *weights: Tensor,
    ) -> Any:
        """See `Ops.project`."""
        (batch, length, dim), whole = x.shape, torch.cat(weights)
        heads, groups = (len(w) // width for w in weights[:2])
        raw = [x.new_empty(batch, length, n, width) for n in (heads, groups, groups)]
        turned = [x.new_empty(batch, n, length, width) for n in (heads, groups)]
        inverses = [torch.empty(batch, length, n) for n in (heads, groups)]
        gains = [None if gain is None else gain.float().contiguous() for gain in (q_gain, k_gain)]
        sizes = (heads, groups, batch * length, dim, length, cosine.shape[-1], width)
        kernels(
            "project",
            x.dtype,
            x,
            whole,
            cosine,
            sine,
            *gains,
            *raw[:2],
            *turned,
            raw[2],
            *inverses,
            *sizes,
        )
        ctx.kernels, ctx.sizes, ctx.heights = kernels, sizes, [len(w) for w in weights]
        ctx.save_for_backward(x, whole, cosine, sine, *gains, *raw[:2], *inverses)
        return *turned, raw[2]

    @staticmethod
    def backward(ctx: Any, *g: Tensor) -> Any:
        """Gradients of x, the gains and the weights."""
        x, *kept = ctx.saved_tensors
        (heads, groups, rows, *_), gains = ctx.sizes, kept[3:5]
        gx, gw = like(x, kept[0])
        sums = [torch.empty(-(-rows // LANES), n) for n in (heads, groups)]
        ctx.kernels(
            "project_back",
            x.dtype,
            *(each.contiguous() for each in g),
            x,
            *kept,
            gx,
            gw,
            *sums,
            *ctx.sizes,
        )
        slopes = [
            None if gain is None else total(ctx.kernels, parts)
            for gain, parts in zip(gains, sums, strict=True)
        ]
        return None, gx, *slopes, None, None, None, *torch.split(gw, ctx.heights)


class Exclude(Function):
    """y without its part along the value of its own position."""

    @staticmethod
    def forward(ctx: Any, kernels: Kernels, y: Tensor, v: Tensor) -> Any:
        """See `Ops.exclude`."""
        out, sizes = (
            torch.empty_like(y),
            (y.shape[0] * y.shape[1], y.shape[2], v.shape[2], y.shape[3]),
        )
        kernels("exclude", y.dtype, y, v, out, *sizes)
        ctx.kernels, ctx.sizes = kernels, sizes
        ctx.save_for_backward(y, v)
        return out

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        """Gradients of y and v."""
        y, v = ctx.saved_tensors
        gy, gv = like(y, v)
        ctx.kernels("exclude_back", y.dtype, g.contiguous(), y, v, gy, gv, *ctx.sizes)
        return None, gy, gv


class FusedAttend(Function):
    """All of it in one kernel (attention.h); scores are computed again in backward instead of being
    kept.
    """

    @staticmethod
    def forward(ctx: Any, kernels: Kernels, q: Tensor, k: Tensor, v: Tensor, span: int) -> Any:
        """See `attend`."""
        batch, heads, length, width = q.shape
        ctx.kernels, ctx.sizes = kernels, (batch, heads, k.shape[1], length, span, width)
        y, log_sum = q.new_empty(batch, length, heads, width), torch.empty(batch, heads, length)
        kernels("attend", q.dtype, q, k, v, y, log_sum, *ctx.sizes)
        ctx.save_for_backward(q, k, v, y, log_sum)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        """Gradients of q, k and v."""
        q, k, v, y, log_sum = ctx.saved_tensors
        gq, gk, gv = (torch.empty_like(t) for t in (q, k, v))
        ctx.kernels(
            "attend_back", q.dtype, q, k, v, y, log_sum, g.contiguous(), gq, gk, gv, *ctx.sizes
        )
        return None, gq, gk, gv, None


class TiledAttend(Function):
    """Tiles of queries, each against the keys that it can see; the heads that share keys are one
    product.
    """

    @staticmethod
    def forward(ctx: Any, kernels: Kernels, q: Tensor, k: Tensor, v: Tensor, span: int) -> Any:
        """See `attend`."""
        batch, heads, length, width = q.shape
        groups = k.shape[1]
        q = q.view(batch * groups, heads // groups, length, width)
        k = k.view(batch * groups, length, width)
        v = v.transpose(1, 2).reshape(batch * groups, length, width)
        y = q.new_empty(batch, length, heads, width)
        out = y.view(batch, length, groups, heads // groups, width).permute(0, 2, 3, 1, 4)
        shares = []
        for tile in _tiles(length, span):
            scores = torch.bmm(tile.rows(q), k[:, tile.keys].mT)
            tile.softmax(kernels, scores, heads // groups, width)
            shares.append(scores)
            found = torch.bmm(scores, v[:, tile.keys])
            out[:, :, :, tile.queries] = found.view(batch, groups, heads // groups, -1, width)
        ctx.kernels, ctx.span, ctx.shape = kernels, span, (batch, heads, groups)
        ctx.save_for_backward(q, k, v, *shares)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        """Gradients of q, k and v."""
        q, k, v, *shares = ctx.saved_tensors
        batch, heads, groups = ctx.shape
        length, width = k.shape[1:]
        g = g.view(batch, length, groups, heads // groups, width).permute(0, 2, 3, 1, 4)
        g = g.reshape(batch * groups, heads // groups, length, width)
        gq = torch.empty_like(q)
        gk, gv = (torch.zeros(k.shape) for _ in range(2))
        for tile, share in zip(_tiles(length, ctx.span), shares, strict=True):
            up = tile.rows(g)
            gv[:, tile.keys] += torch.bmm(share.mT, up)
            slope = torch.bmm(up, v[:, tile.keys].mT)
            ctx.kernels(
                "softmax_back",
                slope.dtype,
                slope,
                share,
                width**-0.5,
                slope.numel() // slope.shape[-1],
                slope.shape[-1],
            )
            gq[:, :, tile.queries] = torch.bmm(slope, k[:, tile.keys]).view(
                len(q), q.shape[1], -1, width
            )
            gk[:, tile.keys] += torch.bmm(slope.mT, tile.rows(q))
        gv = gv.to(v.dtype).view(batch, groups, length, width).transpose(1, 2)
        return (
            None,
            gq.view(batch, heads, length, width),
            gk.to(k.dtype).view(batch, groups, length, width),
            gv,
            None,
        )


class _Tile:
    """Queries start .. stop and the keys between the oldest that the first and the newest that the
    last one sees.
    """

    def __init__(self, start: int, stop: int, span: int) -> None:
        low = max(0, start - span + 1)
        self.queries, self.keys = slice(start, stop), slice(low, stop)
        position = torch.arange(start, stop, dtype=torch.int32)
        self._first, self._last = (position - span + 1).clamp(min=0) - low, position + 1 - low

    def rows(self, t: Tensor) -> Tensor:
        """t (N, R, T, E) -> (N, R * queries, E)."""
        return t[:, :, self.queries].reshape(len(t), -1, t.shape[-1])

    def softmax(self, kernels: Kernels, scores: Tensor, repeat: int, width: int) -> None:
        """In place, over the visible keys of each query; scores are scaled by width^-1/2 first."""
        first, last = self._first.repeat(repeat), self._last.repeat(repeat)
        kernels(
            "softmax",
            scores.dtype,
            scores,
            first,
            last,
            width**-0.5,
            scores.numel() // scores.shape[-1],
            len(first),
            scores.shape[-1],
        )


def _tiles(length: int, span: int) -> list[_Tile]:
    return [_Tile(start, min(start + TILE, length), span) for start in range(0, length, TILE)]
