"""Muon over stacks: orthogonal updates, equal to one matrix at a time, and shareable between
processes.
"""

from __future__ import annotations

import pytest
import torch

from niblick.optim import Group, Layout, Muon, group_of, newton_schulz
from niblick.plan import Role, make_plan
from niblick.recipe import list_recipes, load_recipe


def test_every_role_has_one_optimizer_group() -> None:
    assert {group_of(role) for role in Role} == set(Group)


@pytest.mark.parametrize("name", list_recipes())
def test_a_layout_holds_every_parameter_once_and_groups_are_contiguous(name: str) -> None:
    parameters = make_plan(load_recipe(name).model).parameters
    layout = Layout(parameters)
    assert sorted(slot.name for slot in layout.slots) == sorted(p.name for p in parameters)
    assert layout.total == sum(p.size for p in parameters)
    ends = [slot.start + slot.size for slot in layout.slots]
    assert [slot.start for slot in layout.slots] == [0, *ends[:-1]]
    roles = {p.name: p.role for p in parameters}
    for group in Group:
        part = layout.segment(group)
        inside = {slot.name for slot in layout.slots if part.start <= slot.start < part.stop}
        assert inside == {name for name, role in roles.items() if group_of(role) is group}
    covered = sum(s.count * s.rows * s.columns for s in layout.stacks(Group.MUON))
    assert covered == layout.segment(Group.MUON).stop


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


def _muon(layout: Layout, **options: object) -> Muon:
    settings: dict[str, object] = {"nesterov": True, "steps": 5, "dtype": torch.bfloat16}
    return Muon(layout.stacks(Group.MUON), **(settings | options))  # type: ignore[arg-type]


def _flat(layout: Layout, seed: int) -> torch.Tensor:
    size = layout.segment(Group.MUON).stop
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def test_it_moves_weights_as_the_muon_of_torch_does() -> None:
    layout = Layout(make_plan(load_recipe("pocket").model).parameters)
    weights, momentum = _flat(layout, 1) * 0.05, torch.zeros(layout.segment(Group.MUON).stop)
    slots = [slot for slot in layout.slots if slot.group is Group.MUON]
    theirs = [torch.nn.Parameter(slot.view(weights).clone()) for slot in slots]
    peer = torch.optim.Muon(
        theirs, lr=0.02, weight_decay=0.1, momentum=0.9, nesterov=True, ns_steps=5
    )
    ours = _muon(layout)
    for seed in (2, 3):
        gradients = _flat(layout, seed)
        for slot, parameter in zip(slots, theirs, strict=True):
            parameter.grad = slot.view(gradients).clone()
        peer.step()
        ours.step(weights, gradients, momentum, lr=0.02, beta=0.9, decay=0.1)
    for slot, parameter in zip(slots, theirs, strict=True):
        torch.testing.assert_close(slot.view(weights), parameter.detach(), atol=2e-3, rtol=0)


def test_processes_that_share_the_work_reach_the_same_bits_as_one() -> None:
    layout = Layout(make_plan(load_recipe("pocket").model).parameters)
    start, gradients = _flat(layout, 1), _flat(layout, 2)
    parts: list[torch.Tensor] = []
    for rank in range(3):
        _muon(layout, share=(rank, 3), gather=lambda t: parts.append(t.clone())).step(
            start.clone(), gradients.clone(), torch.zeros_like(start), lr=0.1, beta=0.9, decay=0.0
        )
    summed = parts[0] + parts[1] + parts[2]
    together, alone = start.clone(), start.clone()
    _muon(layout, share=(0, 3), gather=lambda t: t.copy_(summed)).step(
        together, gradients.clone(), torch.zeros_like(start), lr=0.1, beta=0.9, decay=0.0
    )
    _muon(layout).step(
        alone, gradients.clone(), torch.zeros_like(start), lr=0.1, beta=0.9, decay=0.0
    )
    assert torch.equal(together, alone)
