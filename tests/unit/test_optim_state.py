"""Adam on flat groups equals torch's AdamW; clipping; averages that always hold something."""

from __future__ import annotations

import math

import pytest
import torch

from niblick.optim import Group, Layout, Optimizers, make_averager
from niblick.plan import make_plan
from niblick.recipe import load_recipe
from niblick.recipe.schema import AdamRecipe, AveragingRecipe, MuonRecipe, TrainingRecipe


def _optimizer(seed: int = 0) -> Optimizers:
    layout = Layout(make_plan(load_recipe("pocket").model).parameters)
    weights = torch.randn(layout.total, generator=torch.Generator().manual_seed(seed)) * 0.1
    training = TrainingRecipe(adam=AdamRecipe(weight_decay=0.1))
    return Optimizers(layout, weights, training, dtype=torch.float32)


def _noise(optimizer: Optimizers, seed: int) -> torch.Tensor:
    return torch.randn(optimizer.layout.total, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("group", [Group.EMBEDDING, Group.CONTROL])
def test_it_moves_embeddings_and_scalars_as_the_adamw_of_torch_does(group: Group) -> None:
    ours = _optimizer()
    part = ours.layout.segment(group)
    recipe = AdamRecipe(weight_decay=0.1)
    lr = recipe.embedding_lr if group is Group.EMBEDDING else recipe.scalar_lr
    theirs = torch.nn.Parameter(ours.weights[part].clone())
    peer = torch.optim.AdamW(
        [theirs], lr=lr, betas=recipe.betas, eps=recipe.eps, weight_decay=recipe.weight_decay
    )
    for seed in (1, 2, 3):
        gradients = _noise(ours, seed)
        ours.gradients.copy_(gradients)
        theirs.grad = gradients[part].clone()
        peer.step()
        ours.step(1.0, 0.9)
    torch.testing.assert_close(ours.weights[part], theirs.detach())


def test_clipping_bounds_the_norm_and_leaves_small_gradients_alone() -> None:
    optimizer = _optimizer()
    optimizer.gradients.copy_(_noise(optimizer, 1))
    norm = optimizer.clip(0.5)
    assert float(norm) > 1
    assert float(optimizer.gradients.norm()) == pytest.approx(0.5, rel=1e-4)
    before = optimizer.gradients.clone()
    optimizer.clip(1.0)
    optimizer.clip(0)
    assert torch.equal(optimizer.gradients, before)


def test_an_optimizer_that_took_over_saved_state_continues_bit_for_bit() -> None:
    one, other = _optimizer(), _optimizer()
    for optimizer, seeds in ((one, (1, 2, 3)), (other, (1, 2))):
        for seed in seeds:
            optimizer.gradients.copy_(_noise(optimizer, seed))
            optimizer.step(1.0, 0.9)
    fresh = _optimizer(seed=9)
    fresh.weights.copy_(other.weights)
    fresh.load({name: tensor.clone() for name, tensor in other.tensors().items()}, other.steps)
    fresh.gradients.copy_(_noise(fresh, 3))
    fresh.step(1.0, 0.9)
    assert torch.equal(fresh.weights, one.weights)


def test_an_average_with_warm_up_forgets_the_start_of_a_short_run() -> None:
    averager = make_averager(AveragingRecipe(kind="ema", decay=0.997), torch.zeros(1))
    assert averager is not None
    for step in range(1, 41):
        averager.update(torch.ones(1), step=step, remaining=1.0, last=False)
    assert float(averager.average) > 0.98


@pytest.mark.parametrize(("steps", "samples"), [(1, 1), (3, 1), (100, 3)])
def test_swa_samples_from_its_start_on_and_at_least_once(steps: int, samples: int) -> None:
    averager = make_averager(AveragingRecipe(kind="swa", every=20, start=0.5), torch.zeros(1))
    assert averager is not None
    taken = []
    for step in range(1, steps + 1):
        averager.update(
            torch.full((1,), float(step)), step=step, remaining=1 - step / steps, last=step == steps
        )
        if averager.last_sample == step:
            taken.append(float(step))
    assert averager.count == samples
    assert float(averager.average) == pytest.approx(sum(taken) / samples)


def test_no_averaging_means_no_averager() -> None:
    assert make_averager(AveragingRecipe(kind="none"), torch.zeros(1)) is None


@pytest.mark.parametrize("steps", [200, 2000])
@pytest.mark.parametrize("width", [0.05, 0.1, 0.2])
def test_a_power_average_remembers_the_same_share_of_any_run(width: float, steps: int) -> None:
    averager = make_averager(AveragingRecipe(kind="power", width=width), torch.zeros(2))
    assert averager is not None
    for step in range(1, steps + 1):
        at = step / steps
        averager.update(torch.tensor([at, at * at]), step=step, remaining=1.0, last=False)
    mean, square = averager.average.tolist()
    assert math.sqrt(square - mean * mean) == pytest.approx(width, rel=0.03)


def test_a_power_average_of_one_step_is_that_step() -> None:
    averager = make_averager(AveragingRecipe(kind="power"), torch.zeros(1))
    assert averager is not None
    averager.update(torch.tensor([3.0]), step=1, remaining=1.0, last=True)
    assert averager.average.tolist() == [3.0]


@pytest.mark.parametrize("beta", [None, 0.95])
def test_a_step_that_warms_up_leaves_everything_as_it_was(beta: float | None) -> None:
    layout = Layout(make_plan(load_recipe("token-shift-small").model).parameters)
    weights = torch.randn(layout.total, generator=torch.Generator().manual_seed(0)) * 0.1
    training = TrainingRecipe(muon=MuonRecipe(neuron_beta=beta))
    optimizer = Optimizers(layout, weights, training, dtype=torch.float32)
    for seed in (1, 2):
        optimizer.gradients.copy_(_noise(optimizer, seed))
        optimizer.step(1.0, 0.9)
    kept = {name: tensor.clone() for name, tensor in optimizer.tensors().items()}
    before, steps = optimizer.weights.clone(), optimizer.steps
    optimizer.warm_up()
    assert optimizer.steps == steps
    assert torch.equal(optimizer.weights, before)
    assert all(torch.equal(kept[name], tensor) for name, tensor in optimizer.tensors().items())
