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
from niblick.model.kernels import Kernels, use_kernels
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

TABLES = ("token", "bigram", "value_embedding")


def _loss_of(model: LanguageModel) -> RecordedLoss:
    return RecordedLoss(partial(training_loss, model), model)


def _batch(
    model: LanguageModel, seed: int, length: int, weight: float = 1.0, tables: Sequence[str] = ()
) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, model.recipe.vocab_size, (2, length + 1), generator=generator)
    ids[torch.rand(ids.shape, generator=generator) < 0.2] = BOS
    factors = {name: 2.0 * (torch.rand(2, length, 1, generator=generator) < 0.5) for name in tables}
    return Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous(), factors, weight)


def _original(model: LanguageModel, batch: Batch) -> tuple[Tensor, list[Tensor | None]]:
    loss, nll = training_loss(model, batch.inputs, batch.targets, batch.factors)
    return nll.detach(), list(
        torch.autograd.grad(loss * batch.weight, list(model.parameters()), allow_unused=True)
    )


def _check(model: LanguageModel, recorded: RecordedLoss, batch: Batch) -> None:
    nll, grads = _original(model, batch)
    found = recorded.backward(batch)
    assert found is not None and recorded.program is not None
    assert torch.equal(found, nll)
    for parameter, grad in zip(model.parameters(), grads, strict=True):
        assert (parameter.grad is None) == (grad is None)
        if parameter.grad is not None and grad is not None:
            assert torch.equal(parameter.grad, grad)


@settings(max_examples=25, deadline=None)
@given(model_recipes(), st.integers(1, 40), st.sampled_from([1.0, 0.25]))
def test_later_batches_are_those_of_the_original(
    kernels: Kernels, recipe: ModelRecipe, length: int, weight: float
) -> None:
    model = scattered(recipe)
    use_kernels(model, kernels)
    recorded, tables = _loss_of(model), TABLES if length % 2 else ()
    for seed in range(3):
        _check(model, recorded, _batch(model, seed, length, weight, tables))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(0.9)


@pytest.mark.parametrize("documents", ["across", "within"])
@pytest.mark.parametrize("name", ["pocket", "sidecar-small", "depth-recurrent-small"])
def test_shipped_recipes_are_recorded(kernels: Kernels, name: str, documents: str) -> None:
    model = LanguageModel(load_recipe(name, [f"model.document_attention={documents}"]).model)
    Weights(model, Layout(model.plan.parameters), dtype=torch.bfloat16, specs={})
    use_kernels(model, kernels)
    recorded = _loss_of(model)
    for seed in range(2):
        _check(model, recorded, _batch(model, seed, 96))


def _small(kernels: Kernels) -> LanguageModel:
    model = LanguageModel(load_recipe("token-shift-small").model)
    use_kernels(model, kernels)
    return model


def test_other_batches_are_left_to_the_original(kernels: Kernels) -> None:
    model = _small(kernels)
    recorded = _loss_of(model)
    _check(model, recorded, _batch(model, 0, 32))
    assert recorded.backward(_batch(model, 1, 16)) is None
    assert recorded.backward(_batch(model, 1, 32, weight=0.5)) is None
    assert recorded.backward(_batch(model, 1, 32, tables=("token",))) is None
    broken = _batch(model, 1, 32)
    broken.targets[0, 3] = model.recipe.vocab_size
    with pytest.raises(IndexError):
        recorded.backward(broken)
    _check(model, recorded, _batch(model, 2, 32))
    model.tok_emb.weight.data = model.tok_emb.weight.data.clone()
    _check(model, recorded, _batch(model, 3, 32))
    model.blocks.get_submodule("0").mlp.fc.extra = lambda x: x.new_tensor(0.5)
    assert recorded.backward(_batch(model, 3, 32)) is None


def test_what_looks_at_contents_is_not_recorded(kernels: Kernels) -> None:
    model = _small(kernels)

    def loss(
        inputs: Tensor, targets: Tensor, factors: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        value, nll = training_loss(model, inputs, targets, factors)
        return (value * 2 if float(value.detach()) > 1 else value), nll

    recorded = RecordedLoss(loss, model)
    with pytest.warns(UserWarning, match="not recorded"):
        assert recorded.backward(_batch(model, 0, 16)) is None and recorded.program is None


def test_what_differs_is_not_used(kernels: Kernels) -> None:
    model, calls = _small(kernels), []

    def loss(
        inputs: Tensor, targets: Tensor, factors: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        calls.append(1)
        value, nll = training_loss(model, inputs, targets, factors)
        return value * len(calls), nll

    recorded = RecordedLoss(loss, model)
    with pytest.warns(UserWarning, match="it differs"):
        assert recorded.backward(_batch(model, 0, 16)) is None
    assert recorded.backward(_batch(model, 1, 16)) is None and len(calls) == 2


def test_a_recorded_run_is_the_original_and_resumes_to_the_bit(
    kernels: Kernels, kernel_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
