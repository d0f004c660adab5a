"""Self-distillation: what a teacher draws, for whom, and that a resumed run has the same one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from niblick.errors import RecipeError
from niblick.model import LanguageModel
from niblick.model.kernels import Kernels, use_kernels
from niblick.objective import training_loss
from niblick.optim import Layout, Schedule, TrainingPosition
from niblick.recipe import Recipe
from niblick.runtime import World
from niblick.scoring.techniques import without
from niblick.training.checkpoint import list_checkpoints
from niblick.training.teacher import Teacher
from training_runs import digest, run, tiny_dataset, tiny_recipe


def _recipe(share: float = 0.5, **options: float) -> Recipe:
    return tiny_recipe(distillation={"share": share, **options}, batch_tokens=256)


def _teacher(recipe: Recipe, world: World) -> Teacher:
    model = LanguageModel(recipe.model, seed=0)
    slots = Layout(model.plan.parameters, recipe.training).slots
    parameters = dict(model.named_parameters())
    flat = torch.cat([parameters[slot.name].detach().reshape(-1) for slot in slots])
    kind = torch.float32
    return Teacher(recipe, flat, world=world, device="cpu", dtype=kind, kernels=None)


@settings(max_examples=10, deadline=None)
@given(step=st.integers(0, 10**6), size=st.sampled_from([2, 4]))
def test_the_draws_of_all_processes_are_those_of_one(step: int, size: int) -> None:
    recipe = _recipe(draws=3)
    inputs = torch.arange(8 * 32).view(8, 32) % recipe.model.vocab_size
    whole = _teacher(recipe, World()).draw(inputs, step)
    assert whole.shape == (8, 32, 3)
    parts = [
        _teacher(recipe, World(rank, size)).draw(inputs[rank::size], step) for rank in range(size)
    ]
    assert torch.equal(torch.stack(parts, dim=1).flatten(0, 1), whole)
    assert not torch.equal(_teacher(recipe, World()).draw(inputs, step + 1), whole)


@settings(max_examples=10, deadline=None)
@given(
    heat=st.sampled_from([0.7, 1.0, 1.5]), compiled=st.booleans(), words=st.sampled_from([62, 260])
)
def test_tokens_are_drawn_as_often_as_the_distribution_says(
    kernels: Kernels, heat: float, compiled: bool, words: int
) -> None:
    recipe = tiny_recipe().model.model_copy(update={"vocab_size": words, "softcap": 20.0})
    model = LanguageModel(recipe, seed=1).to(torch.bfloat16).requires_grad_(False)
    for parameter in model.parameters():
        parameter.data = parameter.data if parameter.dim() > 1 else parameter.data.float()
    if compiled:
        use_kernels(model, kernels)
    hidden = 3 * torch.randn(1, 300, recipe.dim, generator=torch.Generator().manual_seed(0))
    hidden = hidden.to(torch.bfloat16)
    points = ((torch.arange(400) + 0.5) / 400).expand(1, 300, 400)
    drawn = model.draw(hidden, points, heat)
    found = torch.zeros(1, 300, words).scatter_add_(2, drawn, torch.full(drawn.shape, 1 / 400))
    wanted = (model.head(hidden).float() / heat).softmax(-1)
    assert float((found.cumsum(-1) - wanted.cumsum(-1)).abs().max()) < 0.02


def test_the_loss_is_the_weighted_mean_of_the_targets_and_the_nll_that_of_the_text() -> None:
    model = LanguageModel(tiny_recipe().model, seed=0)
    tokens = torch.arange(66).view(2, 33) % model.recipe.vocab_size
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    drawn = torch.stack([targets.flip(1), inputs], dim=-1)
    text, _ = training_loss(model, inputs, targets)
    others = [training_loss(model, inputs, each)[0] for each in drawn.unbind(-1)]
    loss, nll = training_loss(model, inputs, targets, {"taught": drawn}, taught=0.4)
    assert torch.isclose(loss, 0.6 * text + 0.2 * sum(others)) and torch.equal(nll, text)


def test_teachers_come_when_the_schedule_says_so() -> None:
    def teachers(spent: float, **options: float) -> int:
        training = _recipe(start=0.5, **options).training
        return Schedule(training.model_copy(update={"duration": "100 steps"})).teachers(
            TrainingPosition(step=round(100 * spent), tokens=0, seconds=0.0)
        )

    assert [teachers(spent) for spent in (0, 0.49, 0.5, 1)] == [0, 0, 1, 1]
    assert [teachers(spent, again=0.2) for spent in (0.49, 0.5, 0.7, 0.9)] == [0, 1, 2, 3]
    assert teachers(1, share=0.0) == 0


@pytest.mark.parametrize("compile", ["off", "auto"])
def test_a_run_resumed_under_a_teacher_ends_in_the_same_bits(tmp_path: Path, compile: str) -> None:
    dataset = tiny_dataset(tmp_path / "shards")
    recipe = tiny_recipe(distillation={"share": 0.5, "start": 0.3, "again": 0.5}, compile=compile)
    whole = run(recipe, dataset, tmp_path / "run")
    checkpoints = list_checkpoints(tmp_path / "run" / "checkpoints")
    checkpoints[-1].rename(tmp_path / "last")
    again = run(recipe, dataset, tmp_path / "run", resume=True)
    assert len(checkpoints) > 1 and digest(again) == digest(whole)
    assert digest(run(tiny_recipe(compile=compile), dataset, tmp_path / "plain")) != digest(whole)


def test_distillation_is_a_technique_that_can_be_ablated() -> None:
    assert without(_recipe(), "distillation") == _recipe(share=0.0)
    with pytest.raises(RecipeError, match="distillation"):
        _recipe(share=1.0)
