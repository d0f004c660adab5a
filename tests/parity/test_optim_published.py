"""A recipe can ask for the published scripts' optimizers: three steps agree with a readable form.

Sources: systems.md sections 1 to 3 and 7.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from niblick.optim import Group, Layout, Optimizers, newton_schulz
from niblick.plan import make_plan
from niblick.recipe import load_recipe
from niblick.recipe.schema import AdamRecipe, MuonRecipe, TrainingRecipe

BETAS = (0.85, 0.91, 0.95)  # the forms of the momentum differ only while beta moves
RATES = (1.0, 0.7, 0.2)


def _optimizers(training: TrainingRecipe, name: str = "token-shift-small") -> Optimizers:
    recipe = load_recipe(name, ["model.tied=false"] if training.adam.head_lr is not None else [])
    layout = Layout(make_plan(recipe.model).parameters, training)
    weights = torch.randn(layout.total, generator=torch.Generator().manual_seed(0)) * 0.05
    return Optimizers(layout, weights, training, dtype=torch.float32)


def _run(optimizers: Optimizers) -> list[Tensor]:
    """Three steps on drawn gradients, which are returned."""
    generator, given = torch.Generator().manual_seed(1), []
    for beta, rate in zip(BETAS, RATES, strict=True):
        gradients = torch.randn(optimizers.layout.total, generator=generator)
        given.append(gradients.clone())
        optimizers.gradients.copy_(gradients)
        optimizers.step(rate, beta)
    return given


@pytest.mark.parametrize("decoupled", [True, False])
@pytest.mark.parametrize("group", [Group.EMBEDDING, Group.CONTROL])
def test_adam_decays_as_asked(group: Group, decoupled: bool) -> None:
    training = TrainingRecipe(adam=AdamRecipe(weight_decay=0.04, decoupled=decoupled))
    ours = _optimizers(training)
    part = ours.layout.segment(group)
    theirs = torch.nn.Parameter(ours.weights[part].clone())
    kind = torch.optim.AdamW if decoupled else torch.optim.Adam
    lr = training.adam.embedding_lr if group is Group.EMBEDDING else training.adam.scalar_lr
    peer = kind([theirs], lr=lr, betas=training.adam.betas, eps=1e-8, weight_decay=0.04)
    for gradient, rate in zip(_run(ours), RATES, strict=True):
        peer.param_groups[0]["lr"] = lr * rate
        theirs.grad = gradient[part].clone()
        peer.step()
    torch.testing.assert_close(ours.weights[part], theirs.detach(), rtol=1e-5, atol=1e-6)


def _published_muon(weight: Tensor, gradients: list[Tensor], recipe: MuonRecipe) -> Tensor:
    """One matrix: buf = beta buf + g, direction g + beta buf, decay before or after the update."""
    buffer = torch.zeros_like(weight)
    scale = max(1.0, weight.shape[0] / weight.shape[1]) ** 0.5
    for gradient, beta, rate in zip(gradients, BETAS, RATES, strict=True):
        lr = recipe.lr * rate
        buffer = beta * buffer + gradient
        update = newton_schulz((gradient + beta * buffer)[None], 5, torch.float32)[0]
        decay = 1 - lr * recipe.weight_decay
        weight = weight if recipe.decay_after_update else weight * decay
        weight = weight - lr * scale * update
        weight = weight * decay if recipe.decay_after_update else weight
    return weight


@pytest.mark.parametrize("after", [False, True])
def test_muon_sums_its_momentum_and_decays_where_asked(after: bool) -> None:
    recipe = MuonRecipe(lr=0.03, weight_decay=0.5, momentum_form="sum", decay_after_update=after)
    ours = _optimizers(TrainingRecipe(muon=recipe))
    slots = ours.layout.members(Group.MATRIX)[:3]
    before = [slot.view(ours.weights).clone() for slot in slots]
    given = _run(ours)
    for slot, weight in zip(slots, before, strict=True):
        expected = _published_muon(weight, [slot.view(g) for g in given], recipe)
        torch.testing.assert_close(slot.view(ours.weights), expected, rtol=1e-4, atol=1e-5)


def test_the_forms_of_the_momentum_differ_while_it_rises() -> None:
    found: Callable[[str], Tensor] = lambda form: _moved(MuonRecipe(momentum_form=form))
    assert not torch.allclose(found("sum"), found("mean"), atol=1e-3)


def _moved(recipe: MuonRecipe) -> Tensor:
    ours = _optimizers(TrainingRecipe(muon=recipe))
    _run(ours)
    return ours.layout.members(Group.MATRIX)[0].view(ours.weights)


def test_the_sites_gate_moves_to_muon_and_an_untied_head_to_adam() -> None:
    gate = "shared_sparse.site_gate.weight"
    training = TrainingRecipe(
        muon=MuonRecipe(include=(gate,)), adam=AdamRecipe(head_lr=0.008, weight_decay=0.5)
    )
    ours = _optimizers(training, "sidecar-small")
    groups = {slot.name: slot.group for slot in ours.layout.slots}
    assert groups[gate] is Group.MATRIX
    assert groups["lm_head.weight"] is Group.HEAD
    part = ours.layout.segment(Group.HEAD)
    theirs = torch.nn.Parameter(ours.weights[part].clone())
    peer = torch.optim.Adam([theirs], lr=0.008, betas=training.adam.betas, eps=1e-8)
    for gradient, rate in zip(_run(ours), RATES, strict=True):
        peer.param_groups[0]["lr"] = 0.008 * rate
        theirs.grad = gradient[part].clone()
        peer.step()
    torch.testing.assert_close(ours.weights[part], theirs.detach(), rtol=1e-5, atol=1e-6)
