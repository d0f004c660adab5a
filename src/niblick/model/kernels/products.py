"""Operators that multiply: whole mixers, linear maps and the head (products.h, floats.h)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from niblick.model.kernels.library import LANES
from niblick.model.kernels.operators import (
    Run,
    check,
    floats,
    fold,
    like,
    operator,
    partial_sums,
    sizes,
)


@operator(
    "head_loss(Tensor hidden, Tensor weight, Tensor targets, float cap, bool grads) -> (Tensor nll,"
    " Tensor pull, Tensor sums)"
)
def _head_loss(
    run: Run, hidden: Tensor, weight: Tensor, targets: Tensor, cap: float, grads: bool
) -> tuple[Tensor, ...]:
    """Head, softcap and mean likelihood (head.h): with `grads` what backward only scales."""
    low, nll = weight.to(hidden.dtype), floats(hidden, *targets.shape)
    found = [floats(t, *t.shape) if grads else floats(t, 0) for t in (hidden, weight)]
    pointers = found if grads else (None, None)
    check(run, targets, len(weight))
    rows, width = sizes(hidden)
    run("head", hidden.dtype, hidden, low, targets, cap, nll, *pointers, rows, len(weight), width)
    return nll.mean(), *found


@operator(
    "head_loss_back(Tensor gnll, Tensor hidden, Tensor weight, Tensor pull, Tensor sums) ->"
    " (Tensor ghidden, Tensor gweight)"
)
def _head_loss_back(
    run: Run, g: Tensor, hidden: Tensor, weight: Tensor, pull: Tensor, sums: Tensor
) -> tuple[Tensor, Tensor]:
    ghidden, gweight = torch.empty_like(hidden), torch.empty_like(sums)
    ends = (ghidden, gweight, sizes(pull)[0], *sums.shape)
    run("head_back", ghidden.dtype, pull, sums, g, *ends)
    return ghidden, gweight.to(weight.dtype)


@operator(
    "token_shift(Tensor u, Tensor? boundary, Tensor mix_r, Tensor mix_k, Tensor r, Tensor k,"
    " Tensor v) -> (Tensor out, Tensor receive, Tensor hidden, Tensor value)"
)
def _token_shift(run: Run, u: Tensor, *rest: Tensor | None) -> tuple[Tensor, ...]:
    """The whole token-shift mixer (token_shift.h); r, k, v are its three matrices (D, D)."""
    (out, *kept), (rows, width) = like(u, u, u, u), sizes(u)
    run("token_shift", u.dtype, u, *rest, *kept, out, rows, u.shape[-2], width)
    return out, *kept


@operator(
    "token_shift_back(Tensor gout, Tensor u, Tensor? boundary, Tensor mix_r, Tensor mix_k,"
    " Tensor r, Tensor k, Tensor v, Tensor receive, Tensor hidden, Tensor value) -> (Tensor gu,"
    " Tensor gmix_r, Tensor gmix_k, Tensor gr, Tensor gk, Tensor gv)"
)
def _token_shift_back(run: Run, g: Tensor, u: Tensor, *kept: Tensor) -> tuple[Tensor, ...]:
    (rows, width), weights = sizes(u), kept[3:6]
    receive, key, gu, *gweights = like(u, u, u, *weights)
    sums, gmix = partial_sums(u, 2, width), floats(u, 2, width)
    ends = (receive, key, gu, sums, gmix, *gweights, rows, u.shape[-2], width)
    run("token_shift_back", u.dtype, g, u, *kept, *ends)
    return gu, gmix[0].clone(), gmix[1].clone(), *gweights


_CHANNEL = "Tensor branch, Tensor weight, Tensor scale, Tensor up, Tensor down, float slope"


@operator(
    f"channel(Tensor x, {_CHANNEL}, float factor) -> (Tensor out, Tensor y, Tensor inverse,"
    " Tensor hidden)"
)
def _channel(run: Run, x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    """The channel mixer with the sum and norm before it and the sum after it (channel.h).

    y + scale * W_2 act(W_1 n)^2 with y, n = add_norm(x, branch, weight, factor), W_1 = up, W_2 =
    down.
    """
    (rows, width), inner = sizes(x), len(rest[3])
    (y, out), inverse, hidden = like(x, x), floats(x, rows), x.new_empty(rows, inner)
    run("channel", x.dtype, x, *rest, y, inverse, hidden, out, rows, width, inner)
    return out, y, inverse, hidden


@operator(
    f"channel_back(Tensor gout, {_CHANNEL}, float factor, Tensor y, Tensor inverse, Tensor hidden)"
    " -> (Tensor gx, Tensor gbranch, Tensor gweight, Tensor gscale, Tensor gup, Tensor gdown)"
)
def _channel_back(run: Run, g: Tensor, *kept: Any) -> tuple[Tensor, ...]:
    up, down, y, hidden = kept[3], kept[4], kept[7], kept[9]
    (rows, width), (gx, gbranch, gup, gdown) = sizes(y), like(y, y, up, down)
    sums, gscale = floats(y, -(-rows // LANES), width), floats(y, width)
    ends = (gx, gbranch, sums, gscale, gup, gdown, rows, width, hidden.shape[1])
    run("channel_back", y.dtype, g, *kept, *ends)
    return gx, gbranch, fold(run, sums), gscale, gup, gdown


_HEIGHTS = "int first, int second, int third"


@operator(f"linears(Tensor x, Tensor whole, {_HEIGHTS}) -> (Tensor a, Tensor b, Tensor c)")
def _linears(run: Run, x: Tensor, whole: Tensor, *heights: int) -> tuple[Tensor, ...]:
    """Up to three linear maps of one input, their matrices one below the other (maps.h)."""
    out = [x.new_empty(*x.shape[:-1], height) for height in heights]
    pointers = [t if t.shape[-1] else None for t in out]
    run("maps", x.dtype, x, whole, *pointers, *heights, *sizes(x))
    return tuple(out)


@operator(
    f"linears_back(Tensor? ga, Tensor? gb, Tensor? gc, Tensor x, Tensor whole, {_HEIGHTS})"
    " -> (Tensor gx, Tensor gwhole)"
)
def _linears_back(run: Run, *arguments: Any) -> tuple[Tensor, Tensor]:
    *grads, x, whole, first, second, third = arguments
    (gx, gwhole), heights = like(x, whole), (first, second, third)
    ups = [
        x.new_zeros(*x.shape[:-1], height) if g is None and height else g
        for g, height in zip(grads, heights, strict=True)
    ]
    run("maps_back", x.dtype, *ups, x, whole, gx, gwhole, *heights, *sizes(x))
    return gx, gwhole
