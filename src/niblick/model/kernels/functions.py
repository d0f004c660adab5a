"""Autograd functions around the kernels: what each saves, and how partial sums become gradients of
parameters.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from niblick.model.kernels.library import CHUNKS, LANES, MAPS, Kernels


def like(*tensors: Tensor) -> tuple[Tensor, ...]:
    """A fresh tensor like each."""
    return tuple(torch.empty_like(t) for t in tensors)


def sizes(x: Tensor) -> tuple[int, int]:
    """(rows, width) of x (..., width)."""
    return x.numel() // x.shape[-1], x.shape[-1]


def partial_sums(*shape: int) -> Tensor:
    """Room for what the kernels add up in CHUNKS parts."""
    return torch.empty((CHUNKS, *shape))


def total(kernels: Kernels, parts: Tensor) -> Tensor:
    """The sum (...) of parts (N, ...), float32."""
    out = torch.empty(parts.shape[1:])
    kernels("fold", parts.dtype, parts, out, len(parts), out.numel())
    return out


def _plain(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.contiguous()


class Lookup(Function):
    """Rows of a table in another dtype."""

    @staticmethod
    def forward(ctx: Any, kernels: Kernels, ids: Tensor, table: Tensor, dtype: torch.dtype) -> Any:
        """See `Ops.lookup`."""
        out = torch.empty(*ids.shape, table.shape[1], dtype=dtype)
        kernels("lookup", dtype, ids, table, out, *sizes(out))
        ctx.kernels, ctx.shape = kernels, table.shape
        ctx.save_for_backward(ids)
        return out

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        """Gradient of the table."""
        (ids,), gtable = ctx.saved_tensors, torch.empty(ctx.shape)
        ctx.kernels("lookup_back", g.dtype, g.contiguous(), ids, gtable, ids.numel(), *ctx.shape)
        return None, None, gtable, None


class Embed(Function):
    """The norm of rows of a table and a branch beside them, in the branch's dtype."""

    @staticmethod
    def forward(
        ctx: Any,
        kernels: Kernels,
        ids: Tensor,
        table: Tensor,
        dtype: torch.dtype,
        branch: Tensor | None,
        share: Tensor | None,
        factors: tuple[Tensor | None, Tensor | None],
    ) -> Any:
        """See `Ops.embed`."""
        n, inverse = torch.empty(*ids.shape, table.shape[1], dtype=dtype), torch.empty(ids.shape)
        kernels("embed", dtype, ids, table, branch, share, *factors, n, inverse, *sizes(n))
        ctx.kernels = kernels
        ctx.save_for_backward(ids, table, branch, share, *factors, inverse)
        return n

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        """Gradients of the table, the branch and its share."""
        ids, table, branch, share, *factors, inverse = ctx.saved_tensors
        gx, gtable, sums = torch.empty(g.shape), torch.empty_like(table), partial_sums()
        gbranch = None if branch is None else torch.empty_like(branch)
        ctx.kernels(
            "embed_back",
            g.dtype,
            g.contiguous(),
            ids,
            table,
            branch,
            share,
            *factors,
            inverse,
            gx,
            gtable,
            gbranch,
            sums,
            ids.numel(),
            *table.shape,
        )
        return (
            None,
            None,
            gtable,
            None,
            gbranch,
            None if share is None else total(ctx.kernels, sums).view(share.shape),
            None,
        )


class MixNorm(Function):
    """(mixed, scale * rms(mixed)); without a mix the first output is empty and x stands for it."""

    @staticmethod
    def forward(
        ctx: Any, kernels: Kernels, x: Tensor, x0: Tensor, mix: Tensor | None, scale: float
    ) -> Any:
        """See `Ops.mix_norm`."""
        (rows, width), weight = sizes(x), None if mix is None else mix.float()
        n, inverse = torch.empty_like(x), torch.empty(rows)
        mixed = x if weight is None else torch.empty_like(x)
        pair = (None, None) if weight is None else (weight[0], weight[1])
        kernels(
            "mix_norm",
            x.dtype,
            x,
            x0,
            *pair,
            scale,
            None if weight is None else mixed,
            n,
            inverse,
            rows,
            width,
        )
        ctx.kernels, ctx.scale = kernels, scale
        ctx.save_for_backward(mixed, inverse, x, x0, weight)
        ctx.set_materialize_grads(False)
        return (x.new_empty(0) if weight is None else mixed), n

    @staticmethod
    def backward(ctx: Any, gmixed: Tensor | None, gn: Tensor | None) -> Any:
        """Gradients of x, x0 and the mix."""
        mixed, inverse, x, x0, weight = ctx.saved_tensors
        rows, width = sizes(x)
        gx = torch.empty_like(x)
        gx0, sums = (
            (None, None) if weight is None else (torch.empty_like(x), partial_sums(2, width))
        )
        pair = (None, None) if weight is None else (weight[0], weight[1])
        gmixed = None if weight is None else _plain(gmixed)
        ctx.kernels(
            "mix_norm_back",
            x.dtype,
            gmixed,
            _plain(gn),
            mixed,
            inverse,
            x,
            x0,
            *pair,
            ctx.scale,
            gx,
            gx0,
            sums,
            rows,
            width,
        )
        return None, gx, gx0, None if sums is None else total(ctx.kernels, sums), None


class AddNorm(Function):
    """(y, scale * rms(y)) with y = x + weight * branch; the norm is left out for scale None."""

    @staticmethod
    def forward(
        ctx: Any, kernels: Kernels, x: Tensor, branch: Tensor, weight: Tensor, scale: float | None
    ) -> Any:
        """See `Ops.add_norm`."""
        rows, width = sizes(x)
        y, inverse, weight = torch.empty_like(x), torch.empty(rows), weight.float().contiguous()
        n = None if scale is None else torch.empty_like(x)
        kernels("add_norm", x.dtype, x, branch, weight, scale or 1.0, y, n, inverse, rows, width)
        ctx.kernels, ctx.scale = kernels, scale or 1.0
        ctx.save_for_backward(y, inverse, branch, weight)
        ctx.set_materialize_grads(False)
        return y, n

    @staticmethod
    def backward(ctx: Any, gy: Tensor | None, gn: Tensor | None) -> Any:
        """Gradients of x, the branch and its weight."""
        y, inverse, branch, weight = ctx.saved_tensors
        rows, width = sizes(y)
        gx, gbranch = like(y, y)
        sums = partial_sums(width)
        ctx.kernels(
            "add_norm_back",
            y.dtype,
            _plain(gy),
            _plain(gn),
            y,
            inverse,
            branch,
            weight,
            ctx.scale,
            gx,
            gbranch,
            sums,
            rows,
            width,
        )
        return None, gx, gbranch, total(ctx.kernels, sums), None


class Shift(Function):
    """One or two interpolations between each position and the one before it."""

    @staticmethod
    def forward(
        ctx: Any,
        kernels: Kernels,
        u: Tensor,
        flags: Tensor | None,
        first: Tensor,
        second: Tensor | None,
    ) -> Any:
        """See `Ops.interpolate`."""
        (rows, width), first = sizes(u), first.float().contiguous()
        one, two = torch.empty_like(u), None
        if second is not None:
            second, two = second.float().contiguous(), torch.empty_like(u)
        kernels("shift", u.dtype, u, flags, first, second, one, two, rows, u.shape[-2], width)
        ctx.kernels = kernels
        ctx.save_for_backward(u, flags, first, second)
        return one, two

    @staticmethod
    def backward(ctx: Any, g1: Tensor, g2: Tensor | None) -> Any:
        """Gradients of u and of the weights."""
        u, flags, first, second = ctx.saved_tensors
        rows, width = sizes(u)
        gu, sums = torch.empty_like(u), partial_sums(2, width)
        ctx.kernels(
            "shift_back",
            u.dtype,
            g1.contiguous(),
            _plain(g2) if second is not None else None,
            u,
            flags,
            first,
            second,
            gu,
            sums,
            rows,
            u.shape[-2],
            width,
        )
        gs = total(ctx.kernels, sums)
        return None, gu, None, gs[0], None if second is None else gs[1]


class Square(Function):
    """leaky_relu(x, slope)^2."""

    @staticmethod
    def forward(ctx: Any, kernels: Kernels, x: Tensor, slope: float) -> Any:
        """See `Ops.square`."""
        y = torch.empty_like(x)
        kernels("square", x.dtype, x, slope, y, *sizes(x))
        ctx.kernels, ctx.slope = kernels, slope
        ctx.save_for_backward(x)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        """Gradient of x."""
        (x,) = ctx.saved_tensors
        gx = torch.empty_like(x)
        ctx.kernels("square_back", x.dtype, g.contiguous(), x, ctx.slope, gx, *sizes(x))
        return None, gx, None


class TokenShift(Function):
    """The whole token-shift mixer (token_shift.h)."""

    @staticmethod
    def forward(
        ctx: Any,
        kernels: Kernels,
        u: Tensor,
        flags: Tensor | None,
        mix_r: Tensor,
        mix_k: Tensor,
        *weights: Tensor,
    ) -> Any:
        """See `Ops.token_shift`."""
        (rows, width), mixes = sizes(u), (mix_r.float().contiguous(), mix_k.float().contiguous())
        z, h, v, y = like(u, u, u, u)
        kernels(
            "token_shift", u.dtype, u, flags, *mixes, *weights, z, h, v, y, rows, u.shape[-2], width
        )
        ctx.kernels = kernels
        ctx.save_for_backward(u, flags, *mixes, *weights, z, h, v)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        """Gradients of u, the mixes and the weights."""
        u, *kept = ctx.saved_tensors
        (rows, width), weights = sizes(u), kept[3:6]
        gr, gk, gu, *slopes = like(u, u, u, *weights)
        sums, gmix = partial_sums(2, width), torch.empty(2, width)
        ctx.kernels(
            "token_shift_back",
            u.dtype,
            g.contiguous(),
            u,
            *kept,
            gr,
            gk,
            gu,
            sums,
            gmix,
            *slopes,
            rows,
            u.shape[-2],
            width,
        )
        return None, gu, None, *gmix, *slopes


class Gate(Function):
    """sigmoid(a) * b."""

    @staticmethod
    def forward(ctx: Any, kernels: Kernels, a: Tensor, b: Tensor) -> Any:
        """See `Ops.gate`."""
        y = torch.empty_like(a)
        kernels("gate", a.dtype, a, b, y, *sizes(a))
        ctx.kernels = kernels
        ctx.save_for_backward(a, b)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        """Gradients of a and b."""
        a, b = ctx.saved_tensors
        ga, gb = like(a, b)
        ctx.kernels("gate_back", a.dtype, g.contiguous(), a, b, ga, gb, *sizes(a))
        return None, ga, gb


class Channel(Function):
    """The channel mixer with the sum and norm before it and the sum after it (channel.h)."""

    @staticmethod
    def forward(
        ctx: Any,
        kernels: Kernels,
        x: Tensor,
        branch: Tensor,
        weight: Tensor,
        scale: float,
        up: Tensor,
        down: Tensor,
        share: Tensor,
        slope: float,
    ) -> Any:
        """See `Ops.channel`."""
        (rows, width), inner = sizes(x), len(up)
        weight, share = weight.float().contiguous(), share.float().contiguous()
        y, out, inverse = torch.empty_like(x), torch.empty_like(x), torch.empty(rows)
        h = x.new_empty(rows, inner)
        kernels(
            "channel",
            x.dtype,
            x,
            branch,
            weight,
            share,
            up,
            down,
            slope,
            scale,
            y,
            inverse,
            h,
            out,
            rows,
            width,
            inner,
        )
        ctx.kernels, ctx.scales = kernels, (slope, scale)
        ctx.save_for_backward(branch, weight, share, up, down, y, inverse, h)
        return out

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        """Gradients of all tensors."""
        branch, weight, share, up, down, y, inverse, h = ctx.saved_tensors
        rows, width = sizes(y)
        gx, gbranch, gup, gdown = like(y, y, up, down)
        sums, gshare = torch.empty(-(-rows // LANES), width), torch.empty(width)
        ctx.kernels(
            "channel_back",
            y.dtype,
            g.contiguous(),
            branch,
            weight,
            share,
            up,
            down,
            *ctx.scales,
            y,
            inverse,
            h,
            gx,
            gbranch,
            sums,
            gshare,
            gup,
            gdown,
            rows,
            width,
            h.shape[1],
        )
        return None, gx, gbranch, total(ctx.kernels, sums), None, gup, gdown, gshare, None


class Maps(Function):
    """Up to three linear maps of one input (maps.h)."""

    @staticmethod
    def forward(ctx: Any, kernels: Kernels, x: Tensor, *weights: Tensor) -> Any:
        """See `Ops.maps`."""
        (rows, width), heights, whole = sizes(x), [len(w) for w in weights], _whole(weights)
        out = [x.new_empty(*x.shape[:-1], height) for height in heights]
        kernels("maps", x.dtype, x, whole, *_filled(out, None), *_filled(heights, 0), rows, width)
        ctx.kernels, ctx.heights = kernels, heights
        ctx.save_for_backward(x, whole)
        return tuple(out)

    @staticmethod
    def backward(ctx: Any, *g: Tensor) -> Any:
        """Gradients of x and the weights."""
        x, whole = ctx.saved_tensors
        gx, gw = like(x, whole)
        ups = [each.contiguous() for each in g]
        ctx.kernels(
            "maps_back",
            x.dtype,
            *_filled(ups, None),
            x,
            whole,
            gx,
            gw,
            *_filled(ctx.heights, 0),
            *sizes(x),
        )
        return None, gx, *torch.split(gw, ctx.heights)


def _whole(weights: tuple[Tensor, ...]) -> Tensor:
    return torch.cat(weights) if len(weights) > 1 else weights[0]


def _filled(found: list[Any], missing: Any) -> list[Any]:
    return found + [missing] * (MAPS - len(found))


class Nll(Function):
    """Negative log-likelihood of targets through the softcap (0: none)."""

    @staticmethod
    def forward(ctx: Any, kernels: Kernels, z: Tensor, targets: Tensor, cap: float) -> Any:
        """See `Ops.nll`."""
        nll, log_sum = torch.empty(targets.shape), torch.empty(targets.shape)
        kernels("nll", z.dtype, z, targets, cap, nll, log_sum, *sizes(z))
        ctx.kernels, ctx.cap = kernels, cap
        ctx.save_for_backward(z, targets, log_sum)
        return nll

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        """Gradient of the logits before the softcap."""
        z, targets, log_sum = ctx.saved_tensors
        gz = torch.empty_like(z)
        ctx.kernels(
            "nll_back", z.dtype, z, targets, log_sum, g.contiguous(), ctx.cap, gz, *sizes(z)
        )
        return None, gz, None, None


class HeadLoss(Function):
    """Head, softcap and mean likelihood together (head.h); forward computes the gradients too,
    backward scales them.
    """

    @staticmethod
    def forward(
        ctx: Any, kernels: Kernels, hidden: Tensor, weight: Tensor, targets: Tensor, cap: float
    ) -> Any:
        """See `Ops.head_loss`."""
        (rows, width), words = sizes(hidden), len(weight)
        nll, low = torch.empty(targets.shape), weight.to(hidden.dtype).contiguous()
        slopes: tuple[Tensor | None, ...] = (None, None)
        if any(ctx.needs_input_grad):
            slopes = torch.empty(hidden.shape), torch.empty(weight.shape)
        kernels("head", hidden.dtype, hidden, low, targets, cap, nll, *slopes, rows, words, width)
        ctx.kernels, ctx.dtypes = kernels, (hidden.dtype, weight.dtype)
        ctx.save_for_backward(*slopes)
        return nll.mean()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        """Gradients of the hidden state and the head's weight."""
        slope, gathered = ctx.saved_tensors
        ghidden, gweight = torch.empty(slope.shape, dtype=ctx.dtypes[0]), torch.empty_like(gathered)
        ctx.kernels(
            "head_back",
            ghidden.dtype,
            slope,
            gathered,
            g,
            ghidden,
            gweight,
            sizes(slope)[0],
            *gathered.shape,
        )
        return None, ghidden, gweight.to(ctx.dtypes[1]), None, None
