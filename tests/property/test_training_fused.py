"""The fused kernels give the numbers of the plain operations, forward and backward, at odd
sizes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from niblick.model.ops import Ops
from torch import Tensor

from niblick.model import LanguageModel
from niblick.model.kernels import FusedOps, load_kernels
from niblick.model.tree import Linear
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
from niblick.training.weights import Weights
from property.plans import VOCAB, model_recipes, scattered

TOLERANCE = {
    torch.float32: {"atol": 2e-4, "rtol": 2e-4},
    torch.bfloat16: {"atol": 0.1, "rtol": 0.06},
}
SIZES = st.tuples(st.integers(1, 3), st.integers(1, 150), st.integers(1, 70))
WIDE = st.tuples(
    st.integers(1, 3), st.integers(1, 150), st.integers(8, 70)
)  # a narrow norm's slope is mostly rounding
DTYPES = st.sampled_from(list(TOLERANCE))


def _same(
    ops: Ops, call: Callable[[Ops, list[Tensor]], Any], inputs: list[Tensor], dtype: torch.dtype
) -> None:
    """Outputs and gradients of `call` on the kernels are close to those of the plain operations in
    float32.
    """
    found = []
    for kind, precision in ((Ops(), torch.float32), (ops, None)):
        leaves = [t.clone().to(precision).requires_grad_() for t in inputs]
        results = call(kind, leaves)
        results = list(results) if isinstance(results, tuple) else [results]
        generator = torch.Generator().manual_seed(5)
        total = sum((r.float() * torch.randn(r.shape, generator=generator)).sum() for r in results)
        slopes = torch.autograd.grad(total, leaves, allow_unused=True)
        found.append(
            [r.float().detach() for r in results] + [s.float() for s in slopes if s is not None]
        )
    for one, other in zip(*found, strict=True):
        # A gain's slope sums thousands of terms whose roundings add up even where the terms cancel.
        terms = max(t.numel() for t in inputs) / max(1, one.numel())
        scale = max(1.0, 0.03 * terms**0.5, float(one.abs().max()) if one.numel() else 0.0)
        torch.testing.assert_close(other / scale, one / scale, **TOLERANCE[dtype])


def _draw(*shapes: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(sum(map(len, shapes)))
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def _targets(batch: int, length: int, words: int) -> Tensor:
    return torch.randint(0, words, (batch, length), generator=torch.Generator().manual_seed(2))


@settings(max_examples=20, deadline=None)
@given(WIDE, DTYPES, st.booleans())
def test_norms_of_mixes_and_sums(
    ops: FusedOps, size: tuple[int, int, int], dtype: torch.dtype, mixed: bool
) -> None:
    x, x0, branch = _draw(size, size, size, dtype=dtype)
    mix, weight = _draw((2, size[2]), (size[2],), dtype=torch.float32)
    if mixed:
        _same(ops, lambda o, t: o.mix_norm(t[0], t[1], t[2], 0.7), [x, x0, mix], dtype)
    else:
        _same(ops, lambda o, t: o.mix_norm(t[0], t[0], None, 0.7)[1], [x], dtype)
    _same(ops, lambda o, t: o.add_norm(t[0], t[1], t[2], 0.7), [x, branch, weight], dtype)
    _same(ops, lambda o, t: o.add(t[0], t[1], t[2]), [x, branch, weight], dtype)


@settings(max_examples=20, deadline=None)
@given(SIZES, DTYPES, st.booleans())
def test_shifts_at_boundaries(
    ops: FusedOps, size: tuple[int, int, int], dtype: torch.dtype, masked: bool
) -> None:
    (u,) = _draw(size, dtype=dtype)
    shares = _draw((size[2],), (size[2],), dtype=torch.float32)
    boundary = (
        torch.rand(size[:2], generator=torch.Generator().manual_seed(1)) < 0.2 if masked else None
    )
    _same(
        ops,
        lambda o, t: o.interpolate(t[0], None, boundary, t[1].sigmoid(), t[2].sigmoid()),
        [u, *shares],
        dtype,
    )
    _same(ops, lambda o, t: o.smear(t[0], None, boundary, t[1].sigmoid()), [u, shares[0]], dtype)


@settings(max_examples=25, deadline=None)
@given(SIZES, DTYPES, st.booleans(), st.sampled_from([(1, 1), (2, 1), (6, 3)]), st.integers(1, 5))
def test_what_the_sidecar_adds(
    ops: FusedOps,
    size: tuple[int, int, int],
    dtype: torch.dtype,
    masked: bool,
    heads: tuple[int, int],
    taps: int,
) -> None:
    batch, length, width = size
    boundary = (
        torch.rand(size[:2], generator=torch.Generator().manual_seed(1)) < 0.2 if masked else None
    )
    y, v = _draw((batch, length, heads[0], width), (batch, length, heads[1], width), dtype=dtype)
    of_head, of_group = _draw((heads[0],), (heads[1],), dtype=torch.float32)
    _same(ops, lambda o, t: o.shift_mix(t[0], None, boundary, t[1]), [v, of_group], dtype)
    _same(ops, lambda o, t: o.local_value(t[0], t[1], t[2]), [y, v, of_head], dtype)
    values, gate = _draw(size, size, dtype=dtype)
    site, weight = _draw((width,), (width, taps), dtype=torch.float32)
    _same(ops, lambda o, t: o.gated_filter(*t, None, boundary), [values, gate, site, weight], dtype)


@settings(max_examples=20, deadline=None)
@given(SIZES, DTYPES, st.sampled_from([0.0, 0.5]))
def test_activations(
    ops: FusedOps, size: tuple[int, int, int], dtype: torch.dtype, slope: float
) -> None:
    a, b = _draw(size, size, dtype=dtype)
    _same(ops, lambda o, t: o.square(t[0], slope), [a], dtype)
    _same(ops, lambda o, t: o.gate(t[0], t[1]), [a, b], dtype)


@settings(max_examples=20, deadline=None)
@given(SIZES, DTYPES, st.sampled_from([None, 2.0, 30.0]), st.floats(0.1, 40))
def test_likelihoods(
    ops: FusedOps, size: tuple[int, int, int], dtype: torch.dtype, cap: float | None, spread: float
) -> None:
    (z,) = _draw(size, dtype=dtype)
    targets = _targets(*size)
    _same(ops, lambda o, t: o.nll(t[0], targets, cap), [z * spread], dtype)


@settings(max_examples=20, deadline=None)
@given(
    SIZES, DTYPES, st.sampled_from([None, 2.0, 30.0]), st.sampled_from([16, 24, 48]), st.booleans()
)
@example((2, 1100, 34), torch.bfloat16, 30.0, 32, True)  # more positions than slopes are kept of
def test_likelihoods_of_a_head(
    ops: FusedOps,
    size: tuple[int, int, int],
    dtype: torch.dtype,
    cap: float | None,
    width: int,
    tied: bool,
) -> None:
    batch, length, words = size
    (hidden, weight), targets = (
        _draw((batch, length, width), (words, width), dtype=dtype),
        _targets(batch, length, words),
    )
    weight = weight.float() if tied else weight
    _same(
        ops,
        lambda o, t: o.head_loss(t[0], t[1], targets, cap) * targets.numel(),
        [hidden, weight],
        dtype,
    )


@settings(max_examples=20, deadline=None)
@given(
    st.integers(1, 150),
    DTYPES,
    st.sampled_from([(32, 64), (64, 32), (16, 32), (160, 96)]),
    st.sampled_from([0.0, 0.5]),
)
def test_channel_mixers(
    ops: FusedOps, length: int, dtype: torch.dtype, sizes: tuple[int, int], slope: float
) -> None:
    width, inner = sizes
    x, branch, up, down = _draw(
        (2, length, width), (2, length, width), (inner, width), (width, inner), dtype=dtype
    )
    weight, share = _draw((width,), (width,), dtype=torch.float32)
    leaves = [x, branch, weight, up / width**0.5, down / inner**0.5, share]
    _same(
        ops,
        lambda o, t: o.channel(t[0], t[1], t[2], 0.7, _map(t[3]), _map(t[4]), t[5], slope),
        leaves,
        dtype,
    )


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 150), DTYPES, st.sampled_from([24, 32, 96]), st.booleans())
def test_token_shift_mixers(
    ops: FusedOps, length: int, dtype: torch.dtype, width: int, masked: bool
) -> None:
    square = (width, width)
    u, *weights = _draw((2, length, width), square, square, square, dtype=dtype)
    mixes = _draw((width,), (width,), dtype=torch.float32)
    boundary = (
        torch.rand(2, length, generator=torch.Generator().manual_seed(1)) < 0.2 if masked else None
    )
    leaves = [u, *mixes, *(w / width**0.5 for w in weights)]

    def call(o: Ops, t: list[Tensor]) -> Tensor:
        return o.token_shift(
            t[0], None, boundary, (t[1], t[2]), (_map(t[3]), _map(t[4]), _map(t[5]))
        )

    _same(ops, call, leaves, dtype)


def test_no_positions(ops: FusedOps) -> None:
    x, up, down = (
        t.requires_grad_() for t in _draw((2, 0, 32), (64, 32), (32, 64), dtype=torch.bfloat16)
    )
    weight, gain = (t.requires_grad_() for t in _draw((32,), (2,), dtype=torch.float32))
    y = ops.channel(x, x, weight, 1.0, _map(up), _map(down), weight, 0.5)
    table = (torch.ones(0, 4), torch.zeros(0, 4))
    q, k, v = ops.project(x, (_map(up), _map(up), _map(up)), (gain, gain), table, 32)
    (y.sum() + q.sum() + k.sum() + v.sum()).float().backward()
    assert gain.grad is not None and weight.grad is not None
    assert not gain.grad.any() and not weight.grad.any()


@settings(max_examples=20, deadline=None)
@given(WIDE, DTYPES, st.booleans(), st.booleans(), st.sampled_from([1, 3, 50]))
def test_rows_of_tables(
    ops: FusedOps,
    size: tuple[int, int, int],
    dtype: torch.dtype,
    beside: bool,
    dropped: bool,
    words: int,
) -> None:
    batch, length, width = size
    (table,), (branch,) = _draw((words, width), dtype=torch.float32), _draw(size, dtype=dtype)
    (share,) = _draw((), dtype=torch.float32)
    ids = _targets(batch, length, words)
    own, other = (
        (_targets(batch, length, 2) * 2.0)[..., None] + 0.5 if on else None
        for on in (dropped, dropped and beside)
    )
    _same(ops, lambda o, t: o.lookup(ids, t[0], dtype), [table], dtype)
    if beside:
        _same(
            ops,
            lambda o, t: o.embed(ids, t[0], dtype, t[1], t[2], (own, other)),
            [table, branch, share],
            dtype,
        )
    else:
        _same(ops, lambda o, t: o.embed(ids, t[0], dtype, None, None, (own, None)), [table], dtype)


@settings(max_examples=20, deadline=None)
@given(
    st.integers(1, 150),
    DTYPES,
    st.sampled_from([(32, (64,)), (96, (32, 64)), (64, (128, 32, 32)), (24, (32,))]),
)
def test_maps_of_one_input(
    ops: FusedOps, length: int, dtype: torch.dtype, sizes: tuple[int, tuple[int, ...]]
) -> None:
    width, heights = sizes
    x, *weights = _draw((2, length, width), *((height, width) for height in heights), dtype=dtype)
    leaves = [x, *(w / width**0.5 for w in weights)]
    _same(ops, lambda o, t: o.maps(t[0], tuple(map(_map, t[1:]))), leaves, dtype)


@settings(max_examples=20, deadline=None)
@given(
    st.integers(1, 150),
    DTYPES,
    st.sampled_from([(4, 2, 16), (2, 1, 32), (6, 2, 48), (1, 1, 24)]),
    st.booleans(),
)
def test_projections_of_attention(
    ops: FusedOps, length: int, dtype: torch.dtype, sizes: tuple[int, int, int], gains: bool
) -> None:
    heads, groups, width = sizes
    shapes = ((n * width, 64) for n in (heads, groups, groups))
    u, *weights = _draw((2, length, 64), *shapes, dtype=dtype)
    angles = torch.randn(length, 5, generator=torch.Generator().manual_seed(3))
    table = (angles.cos(), angles.sin())
    leaves = [u, *(w / 8 for w in weights)] + (
        _draw((heads,), (groups,), dtype=torch.float32) if gains else []
    )

    def call(o: Ops, t: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        return o.project(
            t[0],
            (_map(t[1]), _map(t[2]), _map(t[3])),
            (t[4], t[5]) if gains else (None, None),
            table,
            width,
        )

    _same(ops, call, leaves, dtype)


def _map(weight: Tensor) -> Linear:
    found = Linear()
    found.weight = weight
    return found


@settings(max_examples=40, deadline=None)
@example(length=131, heads=(3, 1), span=30, dtype=torch.bfloat16, gains=True, sizes=(48, 2))
@given(
    st.integers(1, 150),
    st.sampled_from([(1, 1), (4, 2), (3, 1)]),
    st.sampled_from([1, 2, 30, 129, 500]),
    DTYPES,
    st.booleans(),
    st.sampled_from([(6, 2), (16, 2), (32, 8), (32, 16), (48, 24), (64, 32), (80, 32)]),
)
def test_attention(
    ops: FusedOps,
    length: int,
    heads: tuple[int, int],
    span: int,
    dtype: torch.dtype,
    gains: bool,
    sizes: tuple[int, int],
) -> None:
    width, half = sizes
    shapes = [(2, length, count, width) for count in (heads[0], heads[1], heads[1])]
    inputs = _draw(*shapes, dtype=dtype)
    angles = torch.randn(length, half, generator=torch.Generator().manual_seed(3))
    table = (angles.cos(), angles.sin())

    def call(o: Ops, t: list[Tensor]) -> Tensor:
        q_gain, k_gain = t[3:] or (None, None)
        return o.attend(o.heads(t[0], q_gain, table), o.heads(t[1], k_gain, table), t[2], span)

    inputs += _draw((heads[0],), (heads[1],), dtype=torch.float32) if gains else []
    _same(ops, call, inputs, dtype)
    if not gains:
        _same(ops, lambda o, t: o.exclude(t[0], t[1]), [inputs[0], inputs[2]], dtype)


@settings(max_examples=15, deadline=None)
@given(model_recipes(), st.integers(1, 40))
def test_any_model_trains_alike(ops: FusedOps, recipe: Any, length: int) -> None:
    model = scattered(recipe)
    generator = torch.Generator().manual_seed(4)
    inputs, targets = (torch.randint(0, VOCAB, (2, length), generator=generator) for _ in range(2))
    found = []
    for kind in (Ops(), ops):
        model.ops = kind
        model.zero_grad()
        loss, _ = training_loss(model, inputs, targets)
        loss.backward()
        slopes = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        found.append({"loss": loss.detach()} | slopes)
    assert set(found[0]) == set(found[1])
    for name, one in found[0].items():
        scale = max(1.0, float(one.abs().max()))
        torch.testing.assert_close(
            found[1][name] / scale, one / scale, atol=1e-3, rtol=1e-3, msg=name
        )


@pytest.mark.parametrize("name", ["token-shift-small", "sidecar-small", "depth-recurrent-small"])
def test_whole_models_train_alike_in_bfloat16(ops: FusedOps, name: str) -> None:
    recipe = load_recipe(name).model
    layout = Layout(make_plan(recipe).parameters)
    tokens = _targets(2, 97, recipe.vocab_size)
    tokens[:, 40] = recipe.bos_id
    found = []
    for kind, dtype in ((Ops(), torch.float32), (Ops(), torch.bfloat16), (ops, torch.bfloat16)):
        model = LanguageModel(recipe, seed=3)
        with torch.no_grad():
            for parameter in model.parameters():  # so that no branch is zero
                parameter.add_(
                    torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)),
                    alpha=0.02,
                )
        model.ops, weights, gradients = (
            kind,
            Weights(model, layout, dtype=dtype, specs={}),
            torch.empty(layout.total),
        )
        loss, _ = training_loss(model, tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
        loss.backward()
        weights.collect(gradients, add=False)
        found.append((loss.item(), gradients))
    (exact, slopes), *others = found
    plain, fused = (float((g - slopes).norm() / slopes.norm()) for _, g in others)
    assert abs(others[1][0] - exact) < 0.01
    assert fused < max(1.2 * plain, 0.02)


@pytest.mark.parametrize("kernels", [False, True])
def test_ids_outside_a_table_are_refused(ops: FusedOps, kernels: bool) -> None:
    model = LanguageModel(load_recipe("token-shift-small").model)
    model.ops, words = ops if kernels else Ops(), model.recipe.vocab_size
    good = _targets(1, 8, words)
    for bad in (words, words + 60_000, -1):
        broken = good.clone()
        broken[0, 3] = bad
        with pytest.raises(IndexError):
            training_loss(model, broken, good)
        with pytest.raises(IndexError):
            training_loss(model, good, broken)


@pytest.mark.parametrize("kernels", [False, True])
def test_a_gradient_that_is_not_a_number_spoils_all_weights(ops: FusedOps, kernels: bool) -> None:
    layout = Layout(make_plan(load_recipe("token-shift-small").model).parameters)
    weights = torch.zeros(layout.total)
    optimizer = Optimizers(layout, weights, TrainingRecipe(), dtype=torch.float32)
    optimizer.use(ops.kernels if kernels else None)
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


@settings(max_examples=15, deadline=None)
@given(
    st.integers(1, 3),
    st.sampled_from([32, 64, 160]),
    st.sampled_from([32, 64, 160]),
    st.integers(1, 5),
)
def test_muon_updates(ops: FusedOps, count: int, rows: int, columns: int, steps: int) -> None:
    (x,) = _draw((count, rows, columns), dtype=torch.float32)
    stack = Stack(0, count, rows, columns)
    found = []
    recipe = MuonRecipe(lr=1.0, weight_decay=0.0, nesterov=False, newton_schulz_steps=steps)
    group = ParameterGroup(
        group=Group.MATRIX, stacks=(stack,), size=x.numel(), dtype=torch.bfloat16
    )
    for kernels in (None, ops.kernels):
        muon, weights = Muon(group, TrainingRecipe(muon=recipe)), torch.zeros(x.numel())
        muon.use(kernels)
        muon.update(weights, x.flatten().clone(), Update(step=1, multiplier=1.0, momentum=0.0))
        found.append(weights)
    assert float(found[0].norm()) > 0
    exact = newton_schulz(x, steps, torch.float32).flatten() * -(max(1.0, rows / columns) ** 0.5)
    scale = float(exact.norm())
    if ops.kernels.attends:
        assert (
            float((found[1] - exact).norm())
            < 1.5 * float((found[0] - exact).norm()) + 0.005 * scale
        )
    else:
        assert torch.equal(*found)


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 5), st.sampled_from([0.0, 0.1]), st.sampled_from([0.0, 0.5, 1e9]))
def test_optimizer_steps(ops: FusedOps, steps: int, decay: float, limit: float) -> None:
    layout = Layout(make_plan(load_recipe("token-shift-small").model).parameters)
    generator = torch.Generator().manual_seed(6)
    start, found = torch.randn(layout.total, generator=generator), []
    gradients = [torch.randn(layout.total, generator=generator) for _ in range(steps)]
    for kernels in (None, ops.kernels):
        weights = start.clone()
        training = TrainingRecipe(adam=AdamRecipe(weight_decay=decay))
        optimizer = Optimizers(layout, weights, training, dtype=torch.float32)
        optimizer.use(kernels)
        for gradient in gradients:
            optimizer.gradients.copy_(gradient)
            optimizer.clip(limit)
            optimizer.step(1.0, 0.9)
        found.append(weights)
    torch.testing.assert_close(found[1], found[0], atol=1e-5, rtol=1e-5)


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 3), st.integers(0, 9), st.booleans())
def test_gradients_are_collected_alike(
    ops: FusedOps, batches: int, absent: int, turned: bool
) -> None:
    recipe = load_recipe("token-shift-small").model
    layout, found = Layout(make_plan(recipe).parameters), []
    for kernels in (None, ops.kernels):
        weights = Weights(LanguageModel(recipe, seed=None), layout, dtype=torch.bfloat16, specs={})
        weights.use(kernels)
        generator, gradients = torch.Generator().manual_seed(7), torch.full((layout.total,), 3.0)
        for batch in range(batches):
            for i, parameter in enumerate(weights.parameters):
                slope = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
                slope = slope.T.contiguous().T if turned and slope.dim() == 2 else slope
                parameter.grad = None if (i + batch) % 10 == absent else slope
            weights.collect(gradients, add=batch > 0)
            assert all(parameter.grad is None for parameter in weights.parameters)
        found.append(gradients)
    assert torch.equal(*found)


def test_what_the_kernels_do_not_cover_falls_back(ops: FusedOps) -> None:
    wide = torch.randn(2, 5, 8, dtype=torch.float64)
    torch.testing.assert_close(ops.square(wide, 0.5), Ops().square(wide, 0.5))
    turned = torch.randn(2, 8, 5).transpose(1, 2)
    torch.testing.assert_close(ops.gate(turned, turned), Ops().gate(turned, turned))
    last = torch.randn(2, 8)
    share = torch.rand(8)
    u = torch.randn(2, 5, 8)
    for one, other in zip(
        ops.interpolate(u, last, None, share, share),
        Ops().interpolate(u, last, None, share, share),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_without_a_compiler_there_are_no_kernels(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert load_kernels() is None
