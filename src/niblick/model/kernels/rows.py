"""Operators over rows of activations: tables, norms, sums, shifts, gates, likelihoods."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from niblick.model.kernels.operators import (
    Run,
    check,
    floats,
    fold,
    head_sizes,
    like,
    operator,
    partial_sums,
    sizes,
)


@operator("lookup(Tensor ids, Tensor table, ScalarType dtype) -> Tensor out")
def _lookup(run: Run, ids: Tensor, table: Tensor, dtype: torch.dtype) -> Tensor:
    """Rows (B, T, E) in `dtype` of a float32 table (N, E) at ids (B, T) int64."""
    out = table.new_empty(*ids.shape, table.shape[1], dtype=dtype)
    check(run, ids, len(table))
    run("lookup", dtype, ids, table, out, *sizes(out))
    return out


@operator("lookup_back(Tensor gout, Tensor ids, Tensor table) -> Tensor gtable")
def _lookup_back(run: Run, g: Tensor, ids: Tensor, table: Tensor) -> Tensor:
    out = torch.empty_like(table)
    run("lookup_back", g.dtype, g, ids, out, ids.numel(), *table.shape)
    return out


_EMBED = (
    "Tensor ids, Tensor table, Tensor? branch, Tensor? scale, Tensor? factor, Tensor? branch_factor"
)


@operator(f"embed({_EMBED}, ScalarType dtype) -> (Tensor out, Tensor inverse)")
def _embed(run: Run, ids: Tensor, table: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    """rms(factor * row + branch_factor * scale * branch); factors (B, T, 1), branch (B, T, D)."""
    *beside, dtype = rest
    out = table.new_empty(*ids.shape, table.shape[1], dtype=dtype)
    inverse = table.new_empty(ids.shape)
    check(run, ids, len(table))
    run("embed", dtype, ids, table, *beside, out, inverse, *sizes(out))
    return out, inverse


@operator(
    f"embed_back(Tensor gout, {_EMBED}, Tensor inverse) -> (Tensor gtable, Tensor gbranch,"
    " Tensor gscale)"
)
def _embed_back(
    run: Run, g: Tensor, ids: Tensor, table: Tensor, branch: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    gx, gtable, sums = floats(g, *g.shape), torch.empty_like(table), partial_sums(g)
    gbranch = None if branch is None else torch.empty_like(branch)
    ends = (gx, gtable, gbranch, sums, ids.numel(), *table.shape)
    run("embed_back", g.dtype, g, ids, table, branch, *rest, *ends)
    return gtable, g.new_empty(0) if gbranch is None else gbranch, fold(run, sums)


@operator("norm(Tensor x, float scale) -> (Tensor n, Tensor inverse)")
def _norm(run: Run, x: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """scale * rms(x)."""
    n, inverse, (rows, width) = torch.empty_like(x), floats(x, *x.shape[:-1]), sizes(x)
    run("mix_norm", x.dtype, x, x, None, None, scale, None, n, inverse, rows, width)
    return n, inverse


@operator("norm_back(Tensor gn, Tensor x, Tensor inverse, float scale) -> Tensor gx")
def _norm_back(run: Run, gn: Tensor, x: Tensor, inverse: Tensor, scale: float) -> Tensor:
    gx, none = torch.empty_like(x), (None, None)
    run("mix_norm_back", x.dtype, None, gn, x, inverse, x, x, *none, scale, gx, *none, *sizes(x))
    return gx


@operator(
    "mix_norm(Tensor x, Tensor x0, Tensor mix, float scale) -> (Tensor mixed, Tensor n,"
    " Tensor inverse)"
)
def _mix_norm(run: Run, x: Tensor, x0: Tensor, mix: Tensor, scale: float) -> tuple[Tensor, ...]:
    """(m, scale * rms(m)) with m = mix[0] * x + mix[1] * x0; mix (2, D)."""
    (mixed, n), inverse = like(x, x), floats(x, *x.shape[:-1])
    run("mix_norm", x.dtype, x, x0, mix[0], mix[1], scale, mixed, n, inverse, *sizes(x))
    return mixed, n, inverse


@operator(
    "mix_norm_back(Tensor? gmixed, Tensor? gn, Tensor mixed, Tensor inverse, Tensor x, Tensor x0,"
    " Tensor mix, float scale) -> (Tensor gx, Tensor gx0, Tensor gmix)"
)
def _mix_norm_back(
    run: Run,
    gmixed: Tensor | None,
    gn: Tensor | None,
    mixed: Tensor,
    inverse: Tensor,
    x: Tensor,
    x0: Tensor,
    mix: Tensor,
    scale: float,
) -> tuple[Tensor, ...]:
    (gx, gx0), sums, kept = like(x, x), partial_sums(x, *mix.shape), (mixed, inverse, x, x0)
    ends = (mix[0], mix[1], scale, gx, gx0, sums)
    run("mix_norm_back", x.dtype, gmixed, gn, *kept, *ends, *sizes(x))
    return gx, gx0, fold(run, sums)


@operator("add(Tensor x, Tensor branch, Tensor weight) -> Tensor out")
def _add(run: Run, x: Tensor, branch: Tensor, weight: Tensor) -> Tensor:
    """x + weight * branch, weight (D,)."""
    out = torch.empty_like(x)
    run("add_norm", x.dtype, x, branch, weight, 1.0, out, None, None, *sizes(x))
    return out


@operator(
    "add_back(Tensor gout, Tensor branch, Tensor weight) -> (Tensor gx, Tensor gbranch,"
    " Tensor gweight)"
)
def _add_back(run: Run, g: Tensor, branch: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    found: tuple[Tensor, ...] = _sum_back(run, g, None, branch, None, branch, weight, 1.0)
    return found


@operator(
    "add_norm(Tensor x, Tensor branch, Tensor weight, float scale) -> (Tensor y, Tensor n,"
    " Tensor inverse)"
)
def _add_norm(
    run: Run, x: Tensor, branch: Tensor, weight: Tensor, scale: float
) -> tuple[Tensor, ...]:
    """(y, scale * rms(y)) with y = x + weight * branch."""
    (y, n), inverse = like(x, x), floats(x, *x.shape[:-1])
    run("add_norm", x.dtype, x, branch, weight, scale, y, n, inverse, *sizes(x))
    return y, n, inverse


@operator(
    "add_norm_back(Tensor? gy, Tensor? gn, Tensor y, Tensor inverse, Tensor branch, Tensor weight,"
    " float scale) -> (Tensor gx, Tensor gbranch, Tensor gweight)"
)
def _sum_back(
    run: Run,
    gy: Tensor | None,
    gn: Tensor | None,
    y: Tensor,
    inverse: Tensor | None,
    branch: Tensor,
    weight: Tensor,
    scale: float,
) -> tuple[Tensor, ...]:
    (gx, gbranch), sums = like(y, y), partial_sums(y, len(weight))
    kept = (y, inverse, branch, weight, scale)
    run("add_norm_back", y.dtype, gy, gn, *kept, gx, gbranch, sums, *sizes(y))
    return gx, gbranch, fold(run, sums)


@operator("interpolate(Tensor u, Tensor? boundary, Tensor s) -> Tensor one")
def _interpolate(run: Run, u: Tensor, boundary: Tensor | None, s: Tensor) -> Tensor:
    """prev(u) + s * (u - prev(u)), s (D,)."""
    one, (rows, width) = torch.empty_like(u), sizes(u)
    run("shift", u.dtype, u, boundary, s, None, one, None, rows, u.shape[-2], width)
    return one


@operator(
    "interpolate_back(Tensor gone, Tensor u, Tensor? boundary, Tensor s) -> (Tensor gu, Tensor gs)"
)
def _interpolate_back(
    run: Run, g: Tensor, u: Tensor, boundary: Tensor | None, s: Tensor
) -> tuple[Tensor, Tensor]:
    gu, sums, (rows, width) = torch.empty_like(u), partial_sums(u, 2, u.shape[-1]), sizes(u)
    ends = (gu, sums, rows, u.shape[-2], width)
    run("shift_back", u.dtype, g, None, u, boundary, s, None, *ends)
    return gu, fold(run, sums)[0].clone()


@operator(
    "interpolations(Tensor u, Tensor? boundary, Tensor s, Tensor t) -> (Tensor one, Tensor two)"
)
def _interpolations(
    run: Run, u: Tensor, boundary: Tensor | None, s: Tensor, t: Tensor
) -> tuple[Tensor, ...]:
    """`interpolate` by s and by t."""
    (one, two), (rows, width) = like(u, u), sizes(u)
    run("shift", u.dtype, u, boundary, s, t, one, two, rows, u.shape[-2], width)
    return one, two


@operator(
    "interpolations_back(Tensor gone, Tensor gtwo, Tensor u, Tensor? boundary, Tensor s, Tensor t)"
    " -> (Tensor gu, Tensor gs, Tensor gt)"
)
def _interpolations_back(
    run: Run, gone: Tensor, gtwo: Tensor, u: Tensor, *rest: Tensor | None
) -> tuple[Tensor, ...]:
    gu, sums, (rows, width) = torch.empty_like(u), partial_sums(u, 2, u.shape[-1]), sizes(u)
    run("shift_back", u.dtype, gone, gtwo, u, *rest, gu, sums, rows, u.shape[-2], width)
    gs, gt = fold(run, sums)
    return gu, gs.clone(), gt.clone()


@operator("square(Tensor x, float slope) -> Tensor out")
def _square(run: Run, x: Tensor, slope: float) -> Tensor:
    """leaky_relu(x, slope)^2."""
    out = torch.empty_like(x)
    run("square", x.dtype, x, slope, out, *sizes(x))
    return out


@operator("square_back(Tensor gout, Tensor x, float slope) -> Tensor gx")
def _square_back(run: Run, g: Tensor, x: Tensor, slope: float) -> Tensor:
    gx = torch.empty_like(x)
    run("square_back", x.dtype, g, x, slope, gx, *sizes(x))
    return gx


@operator("gate(Tensor a, Tensor b) -> Tensor out")
def _gate(run: Run, a: Tensor, b: Tensor) -> Tensor:
    """sigmoid(a) * b."""
    out = torch.empty_like(a)
    run("gate", a.dtype, a, b, out, *sizes(a))
    return out


@operator("gate_back(Tensor gout, Tensor a, Tensor b) -> (Tensor ga, Tensor gb)")
def _gate_back(run: Run, g: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    ga, gb = like(a, b)
    run("gate_back", a.dtype, g, a, b, ga, gb, *sizes(a))
    return ga, gb


@operator("nll(Tensor z, Tensor targets, float cap) -> (Tensor out, Tensor log_sum)")
def _nll(run: Run, z: Tensor, targets: Tensor, cap: float) -> tuple[Tensor, Tensor]:
    """-ln p(target) (B, T) of logits z (B, T, V) before a softcap; 0: none."""
    out, log_sum = floats(z, *targets.shape), floats(z, *targets.shape)
    check(run, targets, z.shape[-1])
    run("nll", z.dtype, z, targets, cap, out, log_sum, *sizes(z))
    return out, log_sum


@operator("nll_back(Tensor gout, Tensor z, Tensor targets, Tensor log_sum, float cap) -> Tensor gz")
def _nll_back(
    run: Run, g: Tensor, z: Tensor, targets: Tensor, log_sum: Tensor, cap: float
) -> Tensor:
    gz = torch.empty_like(z)
    run("nll_back", z.dtype, z, targets, log_sum, g, cap, gz, *sizes(z))
    return gz


@operator("shift_mix(Tensor x, Tensor? boundary, Tensor mix) -> Tensor out")
def _shift_mix(run: Run, x: Tensor, boundary: Tensor | None, mix: Tensor) -> Tensor:
    """x + mix * prev(x); x (B, T, G, E), mix (G,)."""
    out, (rows, length, width) = torch.empty_like(x), _positions(x)
    wide = mix.repeat_interleave(x.shape[-1])
    run("shift_mix", x.dtype, x, boundary, wide, out, rows, length, width)
    return out


@operator(
    "shift_mix_back(Tensor gout, Tensor x, Tensor? boundary, Tensor mix) -> (Tensor gx,"
    " Tensor gmix)"
)
def _shift_mix_back(
    run: Run, g: Tensor, x: Tensor, boundary: Tensor | None, mix: Tensor
) -> tuple[Tensor, Tensor]:
    gx, (rows, length, width) = torch.empty_like(x), _positions(x)
    wide, sums = mix.repeat_interleave(x.shape[-1]), partial_sums(x, width)
    run("shift_mix_back", x.dtype, g, x, boundary, wide, gx, sums, rows, length, width)
    return gx, fold(run, sums).view(len(mix), -1).sum(-1)


def _positions(x: Tensor) -> tuple[int, int, int]:
    """Positions, length and width of x (B, T, G, E)."""
    batch, length, groups, width = x.shape
    return batch * length, length, groups * width


@operator("local_value(Tensor y, Tensor v, Tensor mix) -> Tensor out")
def _local_value(run: Run, y: Tensor, v: Tensor, mix: Tensor) -> Tensor:
    """y + mix * v of the head's group; mix (H,)."""
    out = torch.empty_like(y)
    run("local_value", y.dtype, y, v, mix, out, *head_sizes(y, v))
    return out


@operator(
    "local_value_back(Tensor gout, Tensor v, Tensor mix) -> (Tensor gy, Tensor gv, Tensor gmix)"
)
def _local_value_back(run: Run, g: Tensor, v: Tensor, mix: Tensor) -> tuple[Tensor, ...]:
    gv, sums = torch.empty_like(v), partial_sums(v, len(mix))
    run("local_value_back", v.dtype, g, v, mix, gv, sums, *head_sizes(g, v))
    return g.clone(), gv, fold(run, sums)


@operator(
    "gated_filter(Tensor values, Tensor gate, Tensor site, Tensor weight, Tensor? boundary) ->"
    " Tensor out"
)
def _gated_filter(run: Run, values: Tensor, *rest: Tensor | None) -> Tensor:
    """silu(gate + site) * causal_filter(values): site (S,), weight (S, K)."""
    out, (rows, width), weight = torch.empty_like(values), sizes(values), rest[2]
    assert weight is not None
    ends = (rows, values.shape[1], weight.shape[1], width)
    run("gated_filter", values.dtype, values, *rest, out, *ends)
    return out


@operator(
    "gated_filter_back(Tensor gout, Tensor values, Tensor gate, Tensor site, Tensor weight,"
    " Tensor? boundary) -> (Tensor gvalues, Tensor ggate, Tensor gsite, Tensor gweight)"
)
def _gated_filter_back(
    run: Run,
    g: Tensor,
    values: Tensor,
    gate: Tensor,
    site: Tensor,
    weight: Tensor,
    boundary: Tensor | None,
) -> tuple[Tensor, ...]:
    (gvalues, ggate), sums = like(values, gate), partial_sums(g, 1 + weight.shape[1], len(site))
    pull, (rows, width) = floats(g, *values.shape), sizes(values)
    ends = (pull, gvalues, ggate, sums, rows, values.shape[1], weight.shape[1], width)
    run("gated_filter_back", g.dtype, g, values, gate, site, weight, boundary, *ends)
    found = fold(run, sums)
    return gvalues, ggate, found[0].clone(), found[1:].T.contiguous()
