"""Muon over stacks: orthogonal updates, equal to one matrix at a time, and shareable between
processes.
"""

from __future__ import annotations

import pytest
import torch

from niblick.components.base import ZEROS
from niblick.optim import Group, Layout, Muon, ParameterGroup, Update, group_of, newton_schulz
from niblick.plan import Parameter, Role, make_plan
from niblick.recipe import list_recipes, load_recipe
from niblick.recipe.schema import MuonRecipe, TrainingRecipe


def test_every_role_has_one_optimizer_group() -> None:
    parameters = [
        Parameter(name="x", shape=(2, 2), role=role, init=ZEROS, component="x") for role in Role
    ]
    assert {group_of(p) for p in parameters} == set(Group) - {Group.HEAD}


@pytest.mark.parametrize("name", list_recipes())
def test_a_layout_holds_every_parameter_once_and_groups_are_contiguous(name: str) -> None:
    parameters = make_plan(load_recipe(name).model).parameters
    layout = Layout(parameters)
    assert sorted(slot.name for slot in layout.slots) == sorted(p.name for p in parameters)
    assert layout.total == sum(p.size for p in parameters)
    ends = [slot.start + slot.size for slot in layout.slots]
    assert [slot.start for slot in layout.slots] == [0, *ends[:-1]]
    groups = {p.name: group_of(p) for p in parameters}
    for group in Group:
        part = layout.segment(group)
        inside = {slot.name for slot in layout.slots if part.start <= slot.start < part.stop}
        assert inside == {name for name, found in groups.items() if found is group}
    covered = sum(s.count * s.rows * s.columns for s in layout.stacks(Group.MATRIX))
    assert covered == layout.segment(Group.MATRIX).stop


@pytest.mark.parametrize("shape", [(3, 24, 24), (2, 16, 48), (2, 48, 16), (1, 1, 8)])
def test_updates_are_nearly_orthogonal_whichever_side_is_longer(
    shape: tuple[int, int, int],
) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    values = torch.linalg.svdvals(newton_schulz(x, 5, torch.float32))
    assert float(values.min()) > 0.3
    assert float(values.max()) < 1.3


def test_a_stack_gives_what_each_of_its_matrices_gives() -> None:
    x = torch.randn(5, 12, 20, generator=torch.Generator().manual_seed(2))
    alone = torch.cat([newton_schulz(x[i : i + 1], 5, torch.float32) for i in range(5)])
    torch.testing.assert_close(newton_schulz(x, 5, torch.float32), alone)


def _muon(layout: Layout, *, lr: float = 0.1, decay: float = 0.0, **shared: object) -> Muon:
    group = ParameterGroup(
        group=Group.MATRIX,
        stacks=layout.stacks(Group.MATRIX),
        size=layout.segment(Group.MATRIX).stop,
        dtype=torch.bfloat16,
        **shared,  # type: ignore[arg-type]
    )
    return Muon(group, TrainingRecipe(muon=MuonRecipe(lr=lr, weight_decay=decay)))


AT = Update(step=1, multiplier=1.0, momentum=0.9)


def _flat(layout: Layout, seed: int) -> torch.Tensor:
    size = layout.segment(Group.MATRIX).stop
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def test_it_moves_weights_as_the_muon_of_torch_does() -> None:
    layout = Layout(make_plan(load_recipe("pocket").model).parameters)
    weights = _flat(layout, 1) * 0.05
    slots = [slot for slot in layout.slots if slot.group is Group.MATRIX]
    theirs = [torch.nn.Parameter(slot.view(weights).clone()) for slot in slots]
    peer = torch.optim.Muon(
        theirs, lr=0.02, weight_decay=0.1, momentum=0.9, nesterov=True, ns_steps=5
    )
    ours = _muon(layout, lr=0.02, decay=0.1)
    for seed in (2, 3):
        gradients = _flat(layout, seed)
        for slot, parameter in zip(slots, theirs, strict=True):
            parameter.grad = slot.view(gradients).clone()
        peer.step()
        ours.update(weights, gradients, AT)
    for slot, parameter in zip(slots, theirs, strict=True):
        torch.testing.assert_close(slot.view(weights), parameter.detach(), atol=2e-3, rtol=0)


def test_processes_that_share_the_work_reach_the_same_bits_as_one() -> None:
    layout = Layout(make_plan(load_recipe("pocket").model).parameters)
    start, gradients = _flat(layout, 1), _flat(layout, 2)
    parts: list[torch.Tensor] = []
    for rank in range(3):
        shared = {"rank": rank, "world_size": 3, "all_reduce": lambda t: parts.append(t.clone())}
        _muon(layout, **shared).update(start.clone(), gradients.clone(), AT)
    summed = parts[0] + parts[1] + parts[2]
    together, alone = start.clone(), start.clone()
    _muon(layout, rank=0, world_size=3, all_reduce=lambda t: t.copy_(summed)).update(
        together, gradients.clone(), AT
    )
    _muon(layout).update(alone, gradients.clone(), AT)
    assert torch.equal(together, alone)
