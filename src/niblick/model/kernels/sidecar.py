"""Autograd functions of what the sidecar transformer adds (sidecar.h)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from niblick.model.kernels.functions import like, partial_sums, sizes, total
from niblick.model.kernels.library import Kernels


class ShiftMix(Function):
    """x + mix * prev(x)."""

    @staticmethod
    def forward(ctx: Any, kernels: Kernels, x: Tensor, flags: Tensor | None, mix: Tensor) -> Any:
        """See `Ops.shift_mix`; x (B, T, C), mix (C,)."""
        out, mix = torch.empty_like(x), mix.float().contiguous()
        (rows, width), length = sizes(x), x.shape[1]
        kernels("shift_mix", x.dtype, x, flags, mix, out, rows, length, width)
        ctx.kernels = kernels
        ctx.save_for_backward(x, flags, mix)
        return out

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        """Gradients of x and the mix."""
        x, flags, mix = ctx.saved_tensors
        (rows, width), gx, sums = sizes(x), torch.empty_like(x), partial_sums(x.shape[-1])
        ctx.kernels(
            "shift_mix_back",
            x.dtype,
            g.contiguous(),
            x,
            flags,
            mix,
            gx,
            sums,
            rows,
            x.shape[1],
            width,
        )
        return None, gx, None, total(ctx.kernels, sums)


class LocalValue(Function):
    """y + mix * v of the head's group."""

    @staticmethod
    def forward(ctx: Any, kernels: Kernels, y: Tensor, v: Tensor, mix: Tensor) -> Any:
        """See `Ops.local_value`."""
        out, mix = torch.empty_like(y), mix.float().contiguous()
        ctx.kernels, ctx.sizes = (
            kernels,
            (y.shape[0] * y.shape[1], y.shape[2], v.shape[2], y.shape[3]),
        )
        kernels("local_value", y.dtype, y, v, mix, out, *ctx.sizes)
        ctx.save_for_backward(v, mix)
        return out

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        """Gradients of y, v and the mix."""
        v, mix = ctx.saved_tensors
        g, gv, sums = g.contiguous(), torch.empty_like(v), partial_sums(len(mix))
        ctx.kernels("local_value_back", v.dtype, g, v, mix, gv, sums, *ctx.sizes)
        return None, g, gv, total(ctx.kernels, sums)


class GatedFilter(Function):
    """silu(gate + site) times a causal depthwise filter."""

    @staticmethod
    def forward(
        ctx: Any,
        kernels: Kernels,
        values: Tensor,
        gate: Tensor,
        site: Tensor,
        weight: Tensor,
        flags: Tensor | None,
    ) -> Any:
        """See `Ops.gated_filter`."""
        out, site, weight = (
            torch.empty_like(values),
            site.float().contiguous(),
            weight.float().contiguous(),
        )
        rows, width = sizes(values)
        ctx.kernels, ctx.sizes = kernels, (rows, values.shape[1], weight.shape[1], width)
        kernels("gated_filter", values.dtype, values, gate, site, weight, flags, out, *ctx.sizes)
        ctx.save_for_backward(values, gate, site, weight, flags)
        return out

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        """Gradients of the values, the gate, the site and the weight."""
        values, gate, site, weight, flags = ctx.saved_tensors
        (gvalues, ggate), sums = like(values, gate), partial_sums(1 + weight.shape[1], len(site))
        pull = torch.empty(values.shape)
        ctx.kernels(
            "gated_filter_back",
            g.dtype,
            g.contiguous(),
            values,
            gate,
            site,
            weight,
            flags,
            pull,
            gvalues,
            ggate,
            sums,
            *ctx.sizes,
        )
        slopes = total(ctx.kernels, sums)
        return None, gvalues, ggate, slopes[0], slopes[1:].T, None
