"""A recorded step gives the gradients of the original to the bit, whatever the batch holds, or is
not used.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from niblick.model import LanguageModel
from niblick.model.kernels import FusedOps
from niblick.model.kernels.arena import ALIGNMENT, Block, place
from niblick.model.kernels.capture import NotRepeatableError, capture
from niblick.objective import training_loss
from niblick.optim import Layout
from niblick.recipe import load_recipe
from niblick.recipe.model import ModelRecipe
from niblick.runtime import World
from niblick.training import Progress, train
from niblick.training.recorded import Batch, RecordedLoss
from niblick.training.weights import Weights
from property.plans import BOS, model_recipes, scattered
from training_runs import digest, run, tiny_dataset, tiny_recipe

BLOCKS = st.lists(
    st.builds(
        lambda size, a, b: Block(size, min(a, b), max(a, b)),
        st.integers(0, 500),
        st.integers(0, 20),
        st.integers(0, 20),
    )
)
TABLES = ("token", "bigram", "value_embedding")


@given(BLOCKS)
def test_blocks_needed_at_once_do_not_overlap(blocks: list[Block]) -> None:
    offsets, size = place(blocks)
    assert size <= sum(b.size + ALIGNMENT for b in blocks)
    for i, (one, start) in enumerate(zip(blocks, offsets, strict=True)):
        assert start % ALIGNMENT == 0 and start + one.size <= size
        for other, begin in zip(blocks[:i], offsets[:i], strict=True):
            apart = one.last < other.first or other.last < one.first
            assert apart or start >= begin + other.size or begin >= start + one.size


@given(st.lists(st.integers(1, 300), min_size=1))
def test_blocks_of_a_chain_take_the_room_of_two(sizes: list[int]) -> None:
    _, size = place([Block(max(sizes), i, i + 1) for i in range(len(sizes))])
    assert size <= 2 * (max(sizes) + ALIGNMENT)


def _loss_of(model: LanguageModel) -> RecordedLoss:
    assert isinstance(model.ops, FusedOps)
    return RecordedLoss(partial(training_loss, model), model, model.ops.kernels)


def _batch(
    model: LanguageModel, seed: int, length: int, share: float = 1.0, tables: Sequence[str] = ()
) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, model.recipe.vocab_size, (2, length + 1), generator=generator)
    ids[torch.rand(ids.shape, generator=generator) < 0.2] = BOS
    factors = {name: 2.0 * (torch.rand(2, length, 1, generator=generator) < 0.5) for name in tables}
    return Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous(), factors, share)


def _original(model: LanguageModel, batch: Batch) -> tuple[Tensor, list[Tensor | None]]:
    loss, nll = training_loss(model, batch.inputs, batch.targets, batch.factors)
    return nll.detach(), list(
        torch.autograd.grad(loss * batch.share, list(model.parameters()), allow_unused=True)
    )


def _check(model: LanguageModel, recorded: RecordedLoss, batch: Batch) -> None:
    nll, slopes = _original(model, batch)
    found = recorded.backward(batch)
    assert found is not None and recorded.program is not None
    assert torch.equal(found, nll)
    for parameter, slope in zip(model.parameters(), slopes, strict=True):
        assert (parameter.grad is None) == (slope is None)
        if parameter.grad is not None and slope is not None:
            assert torch.equal(parameter.grad, slope)


@settings(max_examples=25, deadline=None)
@given(
    model_recipes(),
    st.integers(1, 40),
    st.sampled_from([1.0, 0.25]),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_later_batches_are_those_of_the_original(
    ops: FusedOps, recipe: ModelRecipe, length: int, share: float, dtype: torch.dtype
) -> None:
    model = scattered(recipe).to(dtype)
    model.ops = ops
    recorded, tables = _loss_of(model), TABLES if length % 2 else ()
    for seed in range(3):
        _check(model, recorded, _batch(model, seed, length, share, tables))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(0.9)


@pytest.mark.parametrize("name", ["pocket", "sidecar-small", "depth-recurrent-small"])
def test_shipped_recipes_are_recorded(ops: FusedOps, name: str) -> None:
    model = LanguageModel(load_recipe(name).model)
    Weights(model, Layout(model.plan.parameters), dtype=torch.bfloat16, specs={})
    model.ops = ops
    recorded = _loss_of(model)
    for seed in range(2):
        _check(model, recorded, _batch(model, seed, 96))


def _small(ops: FusedOps) -> LanguageModel:
    model = LanguageModel(load_recipe("token-shift-small").model)
    model.ops = ops
    return model


def test_other_batches_are_left_to_the_original(ops: FusedOps) -> None:
    model = _small(ops)
    recorded = _loss_of(model)
    _check(model, recorded, _batch(model, 0, 32))
    assert recorded.backward(_batch(model, 1, 16)) is None
    assert recorded.backward(_batch(model, 1, 32, share=0.5)) is None
    assert recorded.backward(_batch(model, 1, 32, tables=("token",))) is None
    broken = _batch(model, 1, 32)
    broken.targets[0, 3] = model.recipe.vocab_size
    assert recorded.backward(broken) is None
    _check(model, recorded, _batch(model, 2, 32))
    model.tok_emb.weight.data = model.tok_emb.weight.data.clone()
    assert recorded.backward(_batch(model, 3, 32)) is None


def test_what_looks_at_contents_is_not_recorded(ops: FusedOps) -> None:
    model = _small(ops)

    def loss(
        inputs: Tensor, targets: Tensor, factors: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        value, nll = training_loss(model, inputs, targets, factors)
        return (value * 2 if float(value.detach()) > 1 else value), nll

    recorded = RecordedLoss(loss, model, ops.kernels)
    with pytest.warns(UserWarning, match="not recorded"):
        assert recorded.backward(_batch(model, 0, 16)) is None and recorded.program is None
    with pytest.raises(NotRepeatableError):
        capture(ops.kernels, lambda: [torch.arange(3)[torch.arange(3) > 1]])
    assert ops.kernels.capture is None


def test_what_differs_is_not_used(ops: FusedOps) -> None:
    model, calls = _small(ops), []

    def loss(
        inputs: Tensor, targets: Tensor, factors: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        calls.append(1)
        value, nll = training_loss(model, inputs, targets, factors)
        return value * len(calls), nll

    recorded = RecordedLoss(loss, model, ops.kernels)
    with pytest.warns(UserWarning, match="it differs"):
        assert recorded.backward(_batch(model, 0, 16)) is None
    assert recorded.backward(_batch(model, 1, 16)) is None and len(calls) == 2


def test_operations_that_change_sizes_are_not_recorded(ops: FusedOps) -> None:
    x = torch.randn(5)
    with pytest.raises(NotRepeatableError):
        capture(ops.kernels, lambda: [torch.add(x, 1, out=torch.empty(0))])


@pytest.mark.parametrize("what", ["vector_norm", "list", "several", "expanded", "in place"])
def test_operations_are_repeated_whatever_their_form(ops: FusedOps, what: str) -> None:
    x = torch.randn(4, 6).bfloat16()

    def call() -> list[Tensor]:
        if what == "vector_norm":
            return [torch.linalg.vector_norm(x, dtype=torch.float32)]
        if what == "list":
            return list(torch._foreach_mul([x], 2.0))
        if what == "several":
            return list(torch.sort(x, dim=1))
        if what == "expanded":
            return [(x[:1].expand(3, 6) + 1).t(), x.sum().expand(3)]
        y = x.clone()
        y[:, 1].add_(5.0)
        return [y, y.t_()]

    program = capture(ops.kernels, call)
    for _ in range(2):
        x.copy_(torch.randn(4, 6))
        for found, wanted in zip(program(), call(), strict=True):
            assert found is not None and found.dtype == wanted.dtype
            assert torch.equal(found, wanted)
        program.rest()


def test_a_recorded_run_is_the_original_and_resumes_to_the_bit(
    ops: FusedOps, kernel_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(kernel_cache))
    dataset = tiny_dataset(tmp_path / "shards")
    recipe = tiny_recipe(compile="on", micro_batch_tokens=64, dropout={"bigram": 0.5})

    def stop(progress: Progress) -> None:
        if progress.step == 7 and progress.validation_bpb is None:
            os.kill(os.getpid(), signal.SIGTERM)

    whole = digest(run(recipe, dataset, tmp_path / "whole"))
    assert train(recipe, dataset, tmp_path / "parts", world=World(), on_progress=stop).interrupted
    assert digest(run(recipe, dataset, tmp_path / "parts", resume=True)) == whole
    monkeypatch.setattr(RecordedLoss, "backward", lambda self, batch: None)
    assert digest(run(recipe, dataset, tmp_path / "unrecorded")) == whole


def test_an_arena_is_smaller_than_what_is_made(ops: FusedOps) -> None:
    x = torch.randn(1000)

    def chain() -> list[Tensor]:
        y = x
        for _ in range(20):
            y = torch.sin(y)
        return [y, y.view(10, 100)[3]]

    program = capture(ops.kernels, chain)
    assert program.size <= 2 * (4000 + ALIGNMENT)
    x.copy_(torch.randn(1000))
    whole, row = program()
    expected = chain()
    assert whole is not None and row is not None
    assert torch.equal(whole, expected[0]) and torch.equal(row, expected[1])
