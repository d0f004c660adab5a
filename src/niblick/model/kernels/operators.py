"""The kernels as operators of torch, `torch.ops.niblick`, each with its gradient.

An operator is its schema and a function that makes the results and hands them to kernels. Run with
kernels that do nothing, the function is also the operator's fake form, which tracing needs. Its
gradient is the operator of the same name with "_back", tied to it by the names in their schemas:
"gNAME" is the gradient of the result or the argument NAME, any other argument is what the first
operator was given or gave.

Tensors are contiguous, on the CPU, activations of one float type, control values float32. The
shapes and equations are those of `niblick.components.functional`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from niblick.errors import NiblickError
from niblick.model.kernels.library import CHUNKS, LANES, Kernels

LIBRARY: Any = torch.library.Library("niblick", "DEF")  # type: ignore[no-untyped-call]
Run = Callable[..., None]
_loaded: list[Kernels] = []


@dataclass(frozen=True)
class Operator:
    """An operator by the names in its schema; `function` takes what runs the kernels first."""

    name: str
    arguments: tuple[str, ...]
    results: tuple[str, ...]
    function: Callable[..., Any]

    def __call__(self, *arguments: Any) -> tuple[Any, ...]:
        """Its results, without going through torch."""
        return _tuple(self.function(_run, *arguments))

    @property
    def gradient(self) -> Operator:
        """The operator that gives the gradients of its arguments."""
        return OPERATORS[f"{self.name}_back"]

    @property
    def kept(self) -> tuple[str, ...]:
        """What the gradient needs of the arguments and the results."""
        grads = {f"g{result}" for result in self.results}
        return tuple(name for name in self.gradient.arguments if name not in grads)

    def pull(
        self, back: Callable[..., Any], known: dict[str, Any], grads: Sequence[Tensor | None]
    ) -> tuple[Tensor | None, ...]:
        """Gradients of the arguments, by `back`, from those of the results and what was kept."""
        pairs = zip(self.results, grads, strict=True)
        known = known | {f"g{n}": None if g is None else g.contiguous() for n, g in pairs}
        found = _tuple(back(*(known[name] for name in self.gradient.arguments)))
        given = dict(zip(self.gradient.results, found, strict=True))
        absent = {name for name in self.kept if known[name] is None}
        return tuple(None if n in absent else given.get(f"g{n}") for n in self.arguments)


OPERATORS: dict[str, Operator] = {}


def use(kernels: Kernels) -> None:
    """Make `kernels` those that the operators call."""
    _loaded[:] = [kernels]


def _run(name: str, dtype: torch.dtype, *arguments: Any) -> None:
    if not _loaded:
        raise NiblickError("the niblick operators have no kernels; load_kernels() gives them")
    _loaded[0](name, dtype, *arguments)


def _skip(name: str, dtype: torch.dtype, *arguments: Any) -> None:
    """Kernels that do nothing."""


def _tuple(found: Any) -> tuple[Any, ...]:
    return tuple(found) if isinstance(found, tuple | list) else (found,)


def operator(schema: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Define an operator as a function of (run, *its arguments)."""

    def define(function: Callable[..., Any]) -> Callable[..., Any]:
        name, arguments, results = re.split(r"\(|\) -> ", schema, maxsplit=2)
        OPERATORS[name] = Operator(name, _names(arguments), _names(results.strip("()")), function)
        LIBRARY.define(schema)
        LIBRARY.impl(name, partial(function, _run), "CPU")
        torch.library.register_fake(f"niblick::{name}", partial(function, _skip), lib=LIBRARY)
        if name.endswith("_back"):
            _differentiate(OPERATORS[name.removesuffix("_back")])
        return function

    return define


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.split()[-1] for part in text.split(", "))


def _differentiate(operator: Operator) -> None:
    """Tell autograd of an operator's gradient."""
    backward = getattr(torch.ops.niblick, f"{operator.name}_back").default

    def keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        known = dict(zip(operator.arguments, inputs, strict=True))
        known |= zip(operator.results, _tuple(output), strict=True)
        ctx.plain = {n: known[n] for n in operator.kept if not isinstance(known[n], Tensor)}
        ctx.names = [name for name in operator.kept if name not in ctx.plain]
        ctx.save_for_backward(*(known[name] for name in ctx.names))
        ctx.set_materialize_grads(False)

    def back(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        known = ctx.plain | dict(zip(ctx.names, ctx.saved_tensors, strict=True))
        return operator.pull(backward, known, grads)

    name = f"niblick::{operator.name}"
    torch.library.register_autograd(name, back, setup_context=keep, lib=LIBRARY)


def sizes(x: Tensor) -> tuple[int, int]:
    """(rows, width) of x (..., width)."""
    return x.numel() // x.shape[-1], x.shape[-1]


def like(*tensors: Tensor) -> list[Tensor]:
    """A fresh tensor like each."""
    return [torch.empty_like(t) for t in tensors]


def fold(run: Run, parts: Tensor) -> Tensor:
    """The sum (...) of parts (N, ...), float32."""
    out = parts.new_empty(parts.shape[1:])
    run("fold", parts.dtype, parts, out, len(parts), out.numel())
    return out


def partial_sums(like: Tensor, *shape: int) -> Tensor:
    """Room for what kernels add up in CHUNKS parts."""
    return like.new_empty((CHUNKS, *shape), dtype=torch.float32)


def floats(like: Tensor, *shape: int) -> Tensor:
    """Room for float32 numbers where `like` is."""
    return like.new_empty(shape, dtype=torch.float32)


@operator("lookup(Tensor ids, Tensor table, ScalarType dtype) -> Tensor out")
def _lookup(run: Run, ids: Tensor, table: Tensor, dtype: torch.dtype) -> Tensor:
    """Rows (B, T, E) in `dtype` of a float32 table (N, E) at ids (B, T) int64."""
    out = table.new_empty(*ids.shape, table.shape[1], dtype=dtype)
    _check(run, ids, len(table))
    run("lookup", dtype, ids, table, out, *sizes(out))
    return out


@operator("lookup_back(Tensor gout, Tensor ids, Tensor table) -> Tensor gtable")
def _lookup_back(run: Run, g: Tensor, ids: Tensor, table: Tensor) -> Tensor:
    out = torch.empty_like(table)
    run("lookup_back", g.dtype, g, ids, out, ids.numel(), *table.shape)
    return out


def _check(run: Run, ids: Tensor, count: int) -> None:
    if run is _skip or ids.numel() == 0:
        return
    low, high = (int(each) for each in torch.aminmax(ids))
    if low < 0 or high >= count:
        raise IndexError(f"token ids {low}..{high} are outside 0..{count - 1}")


_EMBED = (
    "Tensor ids, Tensor table, Tensor? branch, Tensor? scale, Tensor? factor, Tensor? branch_factor"
)


@operator(f"embed({_EMBED}, ScalarType dtype) -> (Tensor out, Tensor inverse)")
def _embed(run: Run, ids: Tensor, table: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    """rms(factor * row + branch_factor * scale * branch); factors (B, T, 1), branch (B, T, D)."""
    *beside, dtype = rest
    out = table.new_empty(*ids.shape, table.shape[1], dtype=dtype)
    inverse = table.new_empty(ids.shape)
    _check(run, ids, len(table))
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
    _check(run, targets, z.shape[-1])
    run("nll", z.dtype, z, targets, cap, out, log_sum, *sizes(z))
    return out, log_sum


@operator("nll_back(Tensor gout, Tensor z, Tensor targets, Tensor log_sum, float cap) -> Tensor gz")
def _nll_back(
    run: Run, g: Tensor, z: Tensor, targets: Tensor, log_sum: Tensor, cap: float
) -> Tensor:
    gz = torch.empty_like(z)
    run("nll_back", z.dtype, z, targets, log_sum, g, cap, gz, *sizes(z))
    return gz


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
    _check(run, targets, len(weight))
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


@operator("shift_mix(Tensor x, Tensor? boundary, Tensor mix) -> Tensor out")
def _shift_mix(run: Run, x: Tensor, boundary: Tensor | None, mix: Tensor) -> Tensor:
    """x + mix * prev(x); x (B, T, C), mix (C,)."""
    out, (rows, width) = torch.empty_like(x), sizes(x)
    run("shift_mix", x.dtype, x, boundary, mix, out, rows, x.shape[1], width)
    return out


@operator(
    "shift_mix_back(Tensor gout, Tensor x, Tensor? boundary, Tensor mix) -> (Tensor gx,"
    " Tensor gmix)"
)
def _shift_mix_back(
    run: Run, g: Tensor, x: Tensor, boundary: Tensor | None, mix: Tensor
) -> tuple[Tensor, Tensor]:
    gx, sums, (rows, width) = torch.empty_like(x), partial_sums(x, len(mix)), sizes(x)
    run("shift_mix_back", x.dtype, g, x, boundary, mix, gx, sums, rows, x.shape[1], width)
    return gx, fold(run, sums)


def head_sizes(y: Tensor, v: Tensor) -> tuple[int, int, int, int]:
    """Positions, heads, groups and width of y (B, T, H, E) beside v (B, T, G, E)."""
    return y.shape[0] * y.shape[1], y.shape[2], v.shape[2], y.shape[3]


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
