"""The kernels' operators give the numbers of plain torch, forward and backward, at odd sizes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from niblick import toolchain
from niblick.components import functional as plain
from niblick.components.banded import banded_attention
from niblick.evaluation.adapters import Adapters
from niblick.model import LanguageModel
from niblick.model.equations import Equations
from niblick.model.kernels import Kernels, load_kernels, use_kernels
from niblick.model.kernels.attention import WIDTHS
from niblick.objective import training_loss
from niblick.optim import (
    Group,
    Layout,
    Muon,
    Optimizers,
    ParameterGroup,
    Stack,
    Update,
    newton_schulz,
)
from niblick.plan import make_plan
from niblick.recipe import load_recipe
from niblick.recipe.schema import AdamRecipe, MuonRecipe, TrainingRecipe
from niblick.scoring.options import Adaptation
from niblick.training.weights import Weights
from property.plans import VOCAB, model_recipes, scattered

TOLERANCE = {
    torch.float32: {"atol": 2e-4, "rtol": 2e-4},
    torch.bfloat16: {"atol": 0.1, "rtol": 0.06},
}
SIZES = st.tuples(st.integers(1, 3), st.integers(1, 150), st.integers(1, 70))
WIDE = st.tuples(
    st.integers(1, 3), st.integers(1, 150), st.integers(8, 70)
)  # a narrow norm's gradient is mostly rounding
DTYPES = st.sampled_from(list(TOLERANCE))
EACH_DTYPE = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
Form = Callable[..., Any]
ops: Any = torch.ops.niblick


def _same(one: Form, other: Form, inputs: list[Tensor], dtype: torch.dtype) -> None:
    """Results and gradients of `other` are close to those of `one`, plain torch in float32."""
    found = []
    for call, precision in ((one, torch.float32), (other, None)):
        leaves = [t.clone().to(precision).requires_grad_() for t in inputs]
        results = call(*leaves)
        results = list(results) if isinstance(results, tuple | list) else [results]
        generator = torch.Generator().manual_seed(5)
        total = sum((r.float() * torch.randn(r.shape, generator=generator)).sum() for r in results)
        grads = torch.autograd.grad(total, leaves, allow_unused=True)
        found.append(
            [r.float().detach() for r in results] + [g.float() for g in grads if g is not None]
        )
    for expected, actual in zip(*found, strict=True):
        # A gain's gradient sums thousands of terms whose roundings add up where the terms cancel.
        terms = max(t.numel() for t in inputs) / max(1, expected.numel())
        largest = float(expected.abs().max()) if expected.numel() else 0.0
        scale = max(1.0, 0.03 * terms**0.5, largest)
        torch.testing.assert_close(actual / scale, expected / scale, **TOLERANCE[dtype])


def _draw(*shapes: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(sum(map(len, shapes)))
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def _targets(batch: int, length: int, count: int) -> Tensor:
    return torch.randint(0, count, (batch, length), generator=torch.Generator().manual_seed(2))


def _boundary(size: tuple[int, ...], masked: bool) -> Tensor | None:
    flags = torch.rand(size[:2], generator=torch.Generator().manual_seed(1)) < 0.2
    return flags if masked else None


def _add_norm(x: Tensor, branch: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    y = x + weight * branch
    return y, 0.7 * plain.rms(y)


@settings(max_examples=20, deadline=None)
@given(WIDE, DTYPES)
def test_norms_of_mixes_and_sums(
    kernels: Kernels, size: tuple[int, int, int], dtype: torch.dtype
) -> None:
    x, x0 = _draw(size, size, dtype=dtype)
    mix, weight = _draw((2, size[2]), (size[2],), dtype=torch.float32)

    def mixed(x: Tensor, x0: Tensor, mix: Tensor) -> tuple[Tensor, Tensor]:
        y = mix[0] * x + mix[1] * x0
        return y, 0.7 * plain.rms(y)

    _same(mixed, lambda *t: ops.mix_norm(*t, 0.7)[:2], [x, x0, mix], dtype)
    _same(lambda x: 0.7 * plain.rms(x), lambda x: ops.norm(x, 0.7)[0], [x], dtype)
    _same(_add_norm, lambda *t: ops.add_norm(*t, 0.7)[:2], [x, x0, weight], dtype)
    _same(lambda x, b, w: x + w * b, ops.add, [x, x0, weight], dtype)


def _interpolated(u: Tensor, boundary: Tensor | None, *shares: Tensor) -> tuple[Tensor, ...]:
    before = plain.previous(u, None, boundary)
    return tuple(before.lerp(u, share.sigmoid()) for share in shares)


@settings(max_examples=20, deadline=None)
@given(SIZES, DTYPES, st.booleans())
def test_shifts_at_boundaries(
    kernels: Kernels, size: tuple[int, int, int], dtype: torch.dtype, masked: bool
) -> None:
    (u,), boundary = _draw(size, dtype=dtype), _boundary(size, masked)
    one, two = _draw((size[2],), (size[2],), dtype=torch.float32)
    _same(
        lambda *t: _interpolated(t[0], boundary, *t[1:]),
        lambda u, s, t: ops.interpolations(u, boundary, s.sigmoid(), t.sigmoid()),
        [u, one, two],
        dtype,
    )
    _same(
        lambda *t: _interpolated(t[0], boundary, *t[1:]),
        lambda u, s: ops.interpolate(u, boundary, s.sigmoid()),
        [u, one],
        dtype,
    )


@settings(max_examples=25, deadline=None)
@given(SIZES, DTYPES, st.booleans(), st.sampled_from([(1, 1), (2, 1), (6, 3)]), st.integers(1, 5))
def test_what_the_sidecar_adds(
    kernels: Kernels,
    size: tuple[int, int, int],
    dtype: torch.dtype,
    masked: bool,
    heads: tuple[int, int],
    taps: int,
) -> None:
    (batch, length, width), boundary = size, _boundary(size, masked)
    y, v = _draw((batch, length, heads[0], width), (batch, length, heads[1], width), dtype=dtype)
    of_head, of_group = _draw((heads[0],), (heads[1],), dtype=torch.float32)

    def filtered(values: Tensor, gate: Tensor, site: Tensor, weight: Tensor) -> Tensor:
        return F.silu(gate + site) * plain.causal_filter(values, weight, None, boundary)

    one, other = (
        lambda v, m: plain.shift_mix(v, None, boundary, m),
        lambda v, m: ops.shift_mix(v, boundary, m),
    )
    _same(one, other, [v, of_group], dtype)
    _same(plain.local_value, ops.local_value, [y, v, of_head], dtype)
    values, gate = _draw(size, size, dtype=dtype)
    site, weight = _draw((width,), (width, taps), dtype=torch.float32)
    leaves = [values, gate, site, weight]
    _same(filtered, lambda *t: ops.gated_filter(*t, boundary), leaves, dtype)


def _square(x: Tensor, slope: float) -> Tensor:
    return F.leaky_relu(x, slope).square()


@settings(max_examples=20, deadline=None)
@given(SIZES, DTYPES, st.sampled_from([0.0, 0.5]))
def test_activations(
    kernels: Kernels, size: tuple[int, int, int], dtype: torch.dtype, slope: float
) -> None:
    a, b = _draw(size, size, dtype=dtype)
    _same(lambda a: _square(a, slope), lambda a: ops.square(a, slope), [a], dtype)
    _same(lambda a, b: a.sigmoid() * b, ops.gate, [a, b], dtype)


def _nll(z: Tensor, targets: Tensor, cap: float | None) -> Tensor:
    return plain.nll(z if cap is None else cap * torch.tanh(z / cap), targets)


@settings(max_examples=20, deadline=None)
@given(SIZES, DTYPES, st.sampled_from([None, 2.0, 30.0]), st.floats(0.1, 40))
def test_likelihoods(
    kernels: Kernels,
    size: tuple[int, int, int],
    dtype: torch.dtype,
    cap: float | None,
    spread: float,
) -> None:
    (z,), targets = _draw(size, dtype=dtype), _targets(*size)
    one, other = lambda z: _nll(z, targets, cap), lambda z: ops.nll(z, targets, cap or 0.0)[0]
    _same(one, other, [z * spread], dtype)


@EACH_DTYPE
@settings(max_examples=20, deadline=None)
@given(SIZES, st.sampled_from([2.0, 30.0]), st.sampled_from([32, 96]), st.booleans())
@example((2, 1100, 34), 30.0, 32, True)  # more positions than gradients are kept of
def test_likelihoods_of_a_head(
    kernels: Kernels,
    dtype: torch.dtype,
    size: tuple[int, int, int],
    cap: float,
    width: int,
    tied: bool,
) -> None:
    _needs(kernels, dtype)
    width //= 2 if dtype is torch.bfloat16 else 1
    batch, length, count = size
    count += count % 2
    hidden, weight = _draw((batch, length, width), (count, width), dtype=dtype)
    targets = _targets(batch, length, count)
    _same(
        lambda h, w: _nll(F.linear(h, w), targets, cap).sum(),
        lambda h, w: ops.head_loss(h, w, targets, cap, True)[0] * targets.numel(),
        [hidden, weight.float() if tied else weight],
        dtype,
    )


def _needs(kernels: Kernels, dtype: torch.dtype) -> None:
    if dtype not in kernels.multiplies:
        pytest.skip(f"there are no products of {dtype} for this processor")


@EACH_DTYPE
@settings(max_examples=20, deadline=None)
@given(
    st.integers(1, 150),
    st.sampled_from([(32, 64), (64, 32), (160, 96)]),
    st.sampled_from([0.0, 0.5]),
)
def test_channel_mixers(
    kernels: Kernels, dtype: torch.dtype, length: int, sizes: tuple[int, int], slope: float
) -> None:
    _needs(kernels, dtype)
    width, inner = sizes
    x, branch, up, down = _draw(
        (2, length, width), (2, length, width), (inner, width), (width, inner), dtype=dtype
    )
    weight, scale = _draw((width,), (width,), dtype=torch.float32)

    def channel(
        x: Tensor, branch: Tensor, weight: Tensor, scale: Tensor, up: Tensor, down: Tensor
    ) -> Tensor:
        y, n = _add_norm(x, branch, weight)
        return y + scale * F.linear(_square(F.linear(n, up), slope), down)

    leaves = [x, branch, weight, scale, up / width**0.5, down / inner**0.5]
    _same(channel, lambda *t: ops.channel(*t, slope, 0.7)[0], leaves, dtype)


@EACH_DTYPE
@settings(max_examples=20, deadline=None)
@given(st.integers(1, 150), st.sampled_from([32, 96]), st.booleans())
def test_token_shift_mixers(
    kernels: Kernels, dtype: torch.dtype, length: int, width: int, masked: bool
) -> None:
    _needs(kernels, dtype)
    square, boundary = (width, width), _boundary((2, length), masked)
    u, *weights = _draw((2, length, width), square, square, square, dtype=dtype)
    mixes = _draw((width,), (width,), dtype=torch.float32)

    def mixer(u: Tensor, mix_r: Tensor, mix_k: Tensor, *w: Tensor) -> Tensor:
        r, k = _interpolated(u, boundary, mix_r, mix_k)
        return F.linear(r, w[0]).sigmoid() * F.linear(F.linear(k, w[1]).relu().square(), w[2])

    leaves = [u, *mixes, *(w / width**0.5 for w in weights)]
    _same(mixer, lambda u, *t: ops.token_shift(u, boundary, *t)[0], leaves, dtype)


@EACH_DTYPE
def test_no_positions(kernels: Kernels, dtype: torch.dtype) -> None:
    _needs(kernels, dtype)
    x, up, down, whole = (
        t.requires_grad_() for t in _draw((2, 0, 32), (64, 32), (32, 64), (192, 32), dtype=dtype)
    )
    weight, gain = (t.requires_grad_() for t in _draw((32,), (2,), dtype=torch.float32))
    y = ops.channel(x, x, weight, weight, up, down, 0.5, 1.0)[0]
    table = (torch.ones(0, 4), torch.zeros(0, 4))
    q, k, v, *_ = ops.project(x, whole, gain, gain, *table, 2, 2, 32)
    (y.sum() + q.sum() + k.sum() + v.sum()).float().backward()
    assert gain.grad is not None and weight.grad is not None
    assert not gain.grad.any() and not weight.grad.any()


@EACH_DTYPE
def test_many_positions_give_the_same_gradients_on_any_number_of_threads(
    kernels: Kernels, dtype: torch.dtype
) -> None:
    _needs(kernels, dtype)
    x, square, up, down = _draw((5, 512, 32), (32, 32), (64, 32), (32, 64), dtype=dtype)
    (weight,) = _draw((32,), dtype=torch.float32)
    square, up, down = square / 6, up / 6, down / 8

    def mixers(x: Tensor, square: Tensor, up: Tensor, down: Tensor, weight: Tensor) -> Tensor:
        y = ops.token_shift(x, None, weight, weight, square, square, square)[0]
        y = ops.channel(x, y, weight, weight, up, down, 0.5, 1.0)[0]
        found: Tensor = ops.linears(y, up, 64, 0, 0)[0]
        return found

    def in_torch(x: Tensor, square: Tensor, up: Tensor, down: Tensor, weight: Tensor) -> Tensor:
        r, _ = _interpolated(x, None, weight, weight)
        y = F.linear(r, square).sigmoid() * F.linear(F.linear(r, square).relu().square(), square)
        z = x + weight * y
        return F.linear(z + weight * F.linear(_square(F.linear(plain.rms(z), up), 0.5), down), up)

    inputs, found, before = [x, square, up, down, weight], [], torch.get_num_threads()
    _same(in_torch, mixers, inputs, dtype)
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            leaves = [t.clone().requires_grad_() for t in inputs]
            found.append(torch.autograd.grad(mixers(*leaves).float().square().sum(), leaves))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))


@settings(max_examples=20, deadline=None)
@given(WIDE, DTYPES, st.booleans(), st.booleans(), st.sampled_from([1, 3, 50]))
def test_rows_of_tables(
    kernels: Kernels,
    size: tuple[int, int, int],
    dtype: torch.dtype,
    beside: bool,
    dropped: bool,
    count: int,
) -> None:
    batch, length, width = size
    (table,), (branch,) = _draw((count, width), dtype=torch.float32), _draw(size, dtype=dtype)
    (scale,), ids = _draw((), dtype=torch.float32), _targets(batch, length, count)
    factor = (_targets(batch, length, 2) * 2.0)[..., None] + 0.5 if dropped else None
    other = factor if beside else None

    def embed(table: Tensor, *rest: Tensor) -> Tensor:
        x = plain.dropped(F.embedding(ids, table), factor)
        return plain.rms(x + plain.dropped(rest[1] * rest[0], other) if rest else x)

    def fused(table: Tensor, *rest: Tensor) -> Tensor:
        found: Tensor = ops.embed(ids, table, *(rest or (None, None)), factor, other, dtype)[0]
        return found

    one, two = lambda t: F.embedding(ids, t), lambda t: ops.lookup(ids, t, dtype)
    _same(one, two, [table], dtype)
    _same(embed, fused, [table, branch, scale] if beside else [table], dtype)


@EACH_DTYPE
@settings(max_examples=20, deadline=None)
@given(st.integers(1, 150), st.sampled_from([(32, (64,)), (96, (32, 64)), (64, (128, 32, 32))]))
def test_linear_maps_of_one_input(
    kernels: Kernels, dtype: torch.dtype, length: int, sizes: tuple[int, tuple[int, ...]]
) -> None:
    _needs(kernels, dtype)
    width, heights = sizes
    x, *weights = _draw((2, length, width), *((height, width) for height in heights), dtype=dtype)

    def fused(x: Tensor, *weights: Tensor) -> list[Tensor]:
        padded = [*heights, *[0] * (3 - len(heights))]
        return list(ops.linears(x, torch.cat(weights), *padded)[: len(heights)])

    leaves = [x, *(w / width**0.5 for w in weights)]
    _same(lambda x, *w: [F.linear(x, each) for each in w], fused, leaves, dtype)


def _rotated(x: Tensor, gain: Tensor | None, table: tuple[Tensor, Tensor]) -> Tensor:
    x = plain.rotate(plain.rms(x), table)
    return (x if gain is None else x * gain[:, None]).transpose(1, 2)


@EACH_DTYPE
@settings(max_examples=20, deadline=None)
@given(st.integers(1, 150), st.sampled_from([(4, 2, 16), (2, 1, 32), (6, 2, 48)]), st.booleans())
def test_projections_of_attention(
    kernels: Kernels, dtype: torch.dtype, length: int, sizes: tuple[int, int, int], gains: bool
) -> None:
    _needs(kernels, dtype)
    heads, groups, width = sizes
    shapes = ((n * width, 64) for n in (heads, groups, groups))
    u, *weights = _draw((2, length, 64), *shapes, dtype=dtype)
    angles = torch.randn(length, 5, generator=torch.Generator().manual_seed(3))
    table = (angles.cos(), angles.sin())
    leaves = [u, *(w / 8 for w in weights)]
    leaves += _draw((heads,), (groups,), dtype=torch.float32) if gains else []

    def project(u: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        q, k, v = (plain.split_heads(F.linear(u, w), width) for w in rest[:3])
        q_gain, k_gain = rest[3:] or (None, None)
        return _rotated(q, q_gain, table), _rotated(k, k_gain, table), v

    def fused(u: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        both = rest[3:] or (None, None)
        found = ops.project(u, torch.cat(rest[:3]), *both, *table, heads, groups, width)
        return tuple(found[:3])

    _same(project, fused, leaves, dtype)


def _first(batch: int, length: int, share: float) -> Tensor:
    """Where each position's document begins (B, T); `share` of the positions begin one."""
    begins = torch.rand(batch, length, generator=torch.Generator().manual_seed(7)) < share
    return torch.where(begins, torch.arange(length), 0).cummax(dim=1).values.contiguous()


@settings(max_examples=40, deadline=None)
@example(
    length=131, heads=(3, 1), span=30, dtype=torch.bfloat16, gains=True, sizes=(48, 2), share=0.1
)
@example(
    length=300, heads=(4, 2), span=500, dtype=torch.bfloat16, gains=True, sizes=(32, 2), share=0.01
)
@given(
    st.integers(1, 150),
    st.sampled_from([(1, 1), (4, 2), (3, 1)]),
    st.sampled_from([1, 2, 30, 129, 500]),
    DTYPES,
    st.booleans(),
    st.sampled_from([(6, 2), (16, 2), (32, 8), (32, 16), (48, 24), (64, 32), (80, 32)]),
    st.sampled_from([0.0, 0.01, 0.1, 1.0]),
)
def test_attention(
    kernels: Kernels,
    length: int,
    heads: tuple[int, int],
    span: int,
    dtype: torch.dtype,
    gains: bool,
    sizes: tuple[int, int],
    share: float,
) -> None:
    width, half = sizes
    shapes = [(2, length, count, width) for count in (heads[0], heads[1], heads[1])]
    inputs = _draw(*shapes, dtype=dtype)
    angles = torch.randn(length, half, generator=torch.Generator().manual_seed(3))
    table, repeat = (angles.cos(), angles.sin()), heads[0] // heads[1]
    inputs += _draw((heads[0],), (heads[1],), dtype=torch.float32) if gains else []

    first = _first(2, length, share) if share else None

    def attend(q: Tensor, k: Tensor, v: Tensor, *both: Tensor) -> Tensor:
        q_gain, k_gain = both or (None, None)
        q, k = _rotated(q, q_gain, table), _rotated(k, k_gain, table)
        k, v = (t.repeat_interleave(repeat, 1) for t in (k, v.transpose(1, 2)))
        return banded_attention(q, k, v, span, first=first).transpose(1, 2)

    def fused(form: Form, q: Tensor, k: Tensor, v: Tensor, *both: Tensor) -> Tensor:
        gained = zip((q, k), both or (None, None), strict=True)
        q, k = (ops.heads(t, gain, *table)[0] for t, gain in gained)
        y: Tensor = form(q, k, v, first, span)[0]
        return y

    _same(attend, partial(fused, ops.attend_tiles), inputs, dtype)
    if dtype in kernels.multiplies and width in WIDTHS:
        _same(attend, partial(fused, ops.attend), inputs, dtype)
    if not gains:
        _same(plain.exclude, ops.exclude, [inputs[0], inputs[2]], dtype)


@settings(max_examples=15, deadline=None)
@given(model_recipes(), st.integers(1, 40))
def test_any_model_trains_alike(kernels: Kernels, recipe: Any, length: int) -> None:
    model = scattered(recipe)
    generator = torch.Generator().manual_seed(4)
    inputs, targets = (torch.randint(0, VOCAB, (2, length), generator=generator) for _ in range(2))
    found = []
    for used in (None, kernels):
        assert use_kernels(model, used) is (used is not None)
        model.zero_grad()
        loss, _ = training_loss(model, inputs, targets)
        loss.backward()
        grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        found.append({"loss": loss.detach()} | grads)
    assert set(found[0]) == set(found[1])
    for name, one in found[0].items():
        scale = max(1.0, float(one.abs().max()))
        torch.testing.assert_close(
            found[1][name] / scale, one / scale, atol=1e-3, rtol=1e-3, msg=name
        )


@pytest.mark.parametrize("name", ["token-shift-small", "sidecar-small", "depth-recurrent-small"])
def test_whole_models_train_alike_in_bfloat16(kernels: Kernels, name: str) -> None:
    recipe = load_recipe(name).model
    layout = Layout(make_plan(recipe).parameters)
    tokens = _targets(2, 97, recipe.vocab_size)
    tokens[:, 40] = recipe.bos_id
    found = []
    cases = ((None, torch.float32), (None, torch.bfloat16), (kernels, torch.bfloat16))
    for used, dtype in cases:
        model = LanguageModel(recipe, seed=3)
        with torch.no_grad():
            for parameter in model.parameters():  # so that no branch is zero
                parameter.add_(
                    torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)),
                    alpha=0.02,
                )
        weights = Weights(model, layout, dtype=dtype, specs={})
        gradients = torch.empty(layout.total)
        assert use_kernels(model, used) is (used is not None)
        loss, _ = training_loss(model, tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
        loss.backward()
        weights.collect(gradients, add=False)
        found.append((loss.item(), gradients))
    (exact, grads), *others = found
    plain, fused = (float((g - grads).norm() / grads.norm()) for _, g in others)
    assert abs(others[1][0] - exact) < 0.01
    assert fused < max(1.2 * plain, 0.02)


@pytest.mark.parametrize("used", [False, True])
def test_ids_outside_a_table_are_refused(kernels: Kernels, used: bool) -> None:
    model = LanguageModel(load_recipe("token-shift-small").model)
    use_kernels(model, kernels if used else None)
    count = model.recipe.vocab_size
    good = _targets(1, 8, count)
    for bad in (count, count + 60_000, -1):
        broken = good.clone()
        broken[0, 3] = bad
        with pytest.raises(IndexError):
            training_loss(model, broken, good)
        with pytest.raises(IndexError):
            training_loss(model, good, broken)


@pytest.mark.parametrize("used", [False, True])
def test_a_gradient_that_is_not_a_number_spoils_all_weights(kernels: Kernels, used: bool) -> None:
    layout = Layout(make_plan(load_recipe("token-shift-small").model).parameters)
    weights = torch.zeros(layout.total)
    optimizer = Optimizers(layout, weights, TrainingRecipe(), dtype=torch.float32)
    optimizer.use(kernels if used else None)
    optimizer.gradients.fill_(1.0)[-1] = float("nan")
    optimizer.clip(1.0)
    optimizer.step(1.0, 0.9)
    assert bool(weights.isnan().all())


def test_the_compiler_sees_one_graph() -> None:
    model = LanguageModel(load_recipe("token-shift-small").model)
    tokens = _targets(1, 17, model.recipe.vocab_size)
    compiled = torch.compile(training_loss, backend="eager", fullgraph=True)
    torch.testing.assert_close(
        compiled(model, tokens[:, :-1], tokens[:, 1:])[0],
        training_loss(model, tokens[:, :-1], tokens[:, 1:])[0],
    )


@EACH_DTYPE
@settings(max_examples=15, deadline=None)
@given(
    st.integers(1, 3),
    st.sampled_from([32, 64, 160]),
    st.sampled_from([32, 64, 160]),
    st.integers(1, 5),
)
def test_muon_updates(
    kernels: Kernels, dtype: torch.dtype, count: int, rows: int, columns: int, steps: int
) -> None:
    (x,) = _draw((count, rows, columns), dtype=torch.float32)
    stack = Stack(0, count, rows, columns)
    found = []
    recipe = MuonRecipe(lr=1.0, weight_decay=0.0, nesterov=False, newton_schulz_steps=steps)
    group = ParameterGroup(group=Group.MATRIX, stacks=(stack,), size=x.numel(), dtype=dtype)
    for used in (None, kernels):
        muon, weights = Muon(group, TrainingRecipe(muon=recipe)), torch.zeros(x.numel())
        muon.use(used)
        muon.update(weights, x.flatten().clone(), Update(step=1, multiplier=1.0, momentum=0.0))
        found.append(weights)
    assert float(found[0].norm()) > 0
    exact = newton_schulz(x, steps, torch.float32).flatten() * -(max(1.0, rows / columns) ** 0.5)
    scale = float(exact.norm())
    if dtype in kernels.multiplies:
        assert (
            float((found[1] - exact).norm())
            < 1.5 * float((found[0] - exact).norm()) + 0.005 * scale
        )
    else:
        assert torch.equal(*found)


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 5), st.sampled_from([0.0, 0.1]), st.sampled_from([0.0, 0.5, 1e9]))
def test_optimizer_steps(kernels: Kernels, steps: int, decay: float, limit: float) -> None:
    layout = Layout(make_plan(load_recipe("token-shift-small").model).parameters)
    generator = torch.Generator().manual_seed(6)
    start, found = torch.randn(layout.total, generator=generator), []
    gradients = [torch.randn(layout.total, generator=generator) for _ in range(steps)]
    for used in (None, kernels):
        weights = start.clone()
        training = TrainingRecipe(adam=AdamRecipe(weight_decay=decay))
        optimizer = Optimizers(layout, weights, training, dtype=torch.float32)
        optimizer.use(used)
        for gradient in gradients:
            optimizer.gradients.copy_(gradient)
            optimizer.clip(limit)
            optimizer.step(1.0, 0.9)
        found.append(weights)
    torch.testing.assert_close(found[1], found[0], atol=1e-5, rtol=1e-5)


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 3), st.integers(0, 9), st.booleans())
def test_gradients_are_collected_alike(
    kernels: Kernels, batches: int, absent: int, turned: bool
) -> None:
    recipe = load_recipe("token-shift-small").model
    layout, found = Layout(make_plan(recipe).parameters), []
    for used in (None, kernels):
        weights = Weights(LanguageModel(recipe, seed=None), layout, dtype=torch.bfloat16, specs={})
        weights.use(used)
        generator, gradients = torch.Generator().manual_seed(7), torch.full((layout.total,), 3.0)
        for batch in range(batches):
            for i, parameter in enumerate(weights.parameters):
                grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
                grad = grad.T.contiguous().T if turned and grad.dim() == 2 else grad
                parameter.grad = None if (i + batch) % 10 == absent else grad
            weights.collect(gradients, add=batch > 0)
            assert all(parameter.grad is None for parameter in weights.parameters)
        found.append(gradients)
    assert torch.equal(*found)


def test_what_the_kernels_do_not_cover_is_computed_by_the_plain_form(kernels: Kernels) -> None:
    recipe = load_recipe("token-shift-small").model
    assert not use_kernels(LanguageModel(recipe).double(), kernels)
    model, ids = LanguageModel(recipe), _targets(2, 20, recipe.vocab_size)
    assert use_kernels(model, kernels) and isinstance(model.kernels, Equations)
    with torch.no_grad():
        whole, after = model(ids)
        pieces = torch.cat([model(ids[:, :9])[0], model(ids[:, 9:], model(ids[:, :9])[1])[0]], 1)
        torch.testing.assert_close(pieces, whole, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(model.logits(ids), whole, atol=1e-4, rtol=1e-4)
        model.double()
        torch.testing.assert_close(model.logits(ids), whole, atol=1e-3, rtol=1e-3)
    assert after.position == 20


def test_an_adapter_reaches_every_linear_map_with_kernels(kernels: Kernels) -> None:
    model = scattered(load_recipe("pocket").model)
    ids, settings = _targets(2, 24, model.recipe.vocab_size), Adaptation(method="lora")
    targets = ("fc", "proj", "W_r", "W_k", "W_v", "c_q", "c_k", "c_v")
    adapters = Adapters(model, replace(settings, targets=targets), 2, torch.device("cpu"))
    with torch.no_grad():
        for factor in adapters.factors.values():
            factor.normal_(std=0.1)
        bare, found = model.logits(ids), {}
        for used in (None, kernels):
            use_kernels(model, used)
            with adapters.attached():
                found[used] = model.logits(ids)
        assert torch.equal(found[None], found[kernels]) and not torch.equal(bare, found[None])
        for name, linear in adapters.linears.items():
            linear.extra = partial(adapters.added, name)
            assert not torch.allclose(model.logits(ids), bare, atol=1e-3), name
            linear.extra = None
        torch.testing.assert_close(model.logits(ids), bare, atol=1e-2, rtol=1e-2)


def test_the_operators_are_registered_as_torch_wants_them(kernels: Kernels) -> None:
    x, x0 = (t.requires_grad_() for t in _draw((2, 5, 8), (2, 5, 8), dtype=torch.float32))
    mix, weight = _draw((2, 8), (8,), dtype=torch.float32)
    torch.library.opcheck(ops.mix_norm.default, (x, x0, mix, 0.5))
    torch.library.opcheck(ops.add_norm.default, (x, x0, weight, 0.5))
    q, k, v = _draw((1, 2, 5, 4), (1, 1, 5, 4), (1, 5, 1, 4), dtype=torch.float32)
    torch.library.opcheck(ops.attend_tiles.default, (q.requires_grad_(), k, v, None, 3))


def test_without_a_compiler_there_are_no_kernels(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(toolchain, "find_spec", lambda name: None)
    monkeypatch.setattr(toolchain.CLibrary, "_carried", lambda self: None)
    assert load_kernels() is None


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(1, 200),
    st.sampled_from([1, 17, 64, 500]),
    st.sampled_from([32, 96]),
    st.sampled_from([16, 32]),
)
def test_matrix_tiles_give_what_vectors_give(
    kernels: Kernels, batch: int, length: int, span: int, width: int, head: int
) -> None:
    """Sums are taken in another order, so a value may round to bfloat16's next one."""
    if not kernels.use_tiles(True):
        pytest.skip("this processor has no matrix tiles")
    bf16, heads = torch.bfloat16, 64 // head
    x, up, down, words = _draw(
        (batch, length, width), (2 * width, width), (width, 2 * width), (98, width), dtype=bf16
    )
    gain, scale = _draw((width,), (width,), dtype=torch.float32)
    q, k, v = _draw(
        (batch, heads, length, head), (batch, 2, length, head), (batch, length, 2, head), dtype=bf16
    )
    targets = torch.arange(batch * length).reshape(batch, length) % len(words)
    first = _first(batch, length, 0.05) if length % 2 else None
    leaves = [t.requires_grad_() for t in (x, up, down, words.float(), gain, q, k, v)]

    def run() -> list[Tensor]:
        x, up, down, words, gain, q, k, v = leaves
        y = ops.channel(x, x, gain, scale, up, down, 0.5, 1.0)[0]
        out, nll = (
            ops.attend(q, k, v, first, span)[0],
            ops.head_loss(x, words, targets, 15.0, True)[0],
        )
        total = y.float().square().mean() + out.float().square().mean() + nll
        return [y, out, nll, *torch.autograd.grad(total, leaves)]

    try:
        found = run()
        assert not kernels.use_tiles(False)
        expected = run()
    finally:
        kernels.use_tiles(kernels.tiles)
    for one, other in zip(found, expected, strict=True):
        apart = (one.double() - other.double()).norm()
        assert apart <= 4e-3 * other.double().norm() + 1e-6
