"""Adam's compiled form is the plain one, and a new step compiles nothing."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from niblick.optim import Group, Layout, Muon, Optimizers, ParameterGroup, Stack, Update
from niblick.plan import make_plan
from niblick.recipe import load_recipe
from niblick.recipe.schema import AdamRecipe, TrainingRecipe


@pytest.mark.parametrize(("decoupled", "head_lr"), [(True, None), (False, 0.01)])
def test_compiled_steps_are_the_plain_ones(decoupled: bool, head_lr: float | None) -> None:
    recipe = load_recipe("token-shift-small", ["model.vocab_size=1024"])
    parameters = make_plan(recipe.model).parameters
    adam = AdamRecipe(decoupled=decoupled, head_lr=head_lr, weight_decay=0.1)
    training = TrainingRecipe(adam=adam, clip=0.5)
    layout = Layout(parameters, training)
    counter = CompileCounterWithBackend("aot_eager")
    found = []
    for compiled in (False, True):
        torch.manual_seed(0)
        weights = torch.randn(layout.total) / 20
        optimizers = Optimizers(layout, weights, training, dtype=torch.float32)
        if compiled:
            optimizers.compile(counter)
        for step in range(4):
            optimizers.gradients.copy_(torch.randn(layout.total) / 100)
            optimizers.clip(training.clip)
            optimizers.step(1 - step / 5, 0.9)
        found.append([weights, *optimizers.tensors().values()])
    for plain, fused in zip(*found, strict=True):
        torch.testing.assert_close(fused, plain, rtol=1e-5, atol=1e-6)
    others = len(optimizers.by_group) - 1  # one kernel each; Muon compiles one for each shape
    assert counter.frame_count == others + len(layout.stacks(Group.MATRIX))


def test_a_process_compiles_as_many_shapes_as_it_is_given() -> None:
    """torch gives up after eight, of all models that a process has trained."""
    counter, training = CompileCounterWithBackend("eager"), TrainingRecipe()
    for run in range(2):
        stacks, size = [], 0
        for count in range(1, 8):
            stacks.append(Stack(size, count, 8, 8 * (run + 1)))
            size += count * 64 * (run + 1)
        group = ParameterGroup(group=Group.MATRIX, stacks=tuple(stacks), size=size)
        muon, weights = Muon(group, training), torch.zeros(size)
        muon.compile(counter)
        muon.update(weights, torch.randn(size), Update(step=1, multiplier=1.0))
    assert counter.frame_count == 14
