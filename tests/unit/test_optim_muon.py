"""Muon over stacks: orthogonal updates, equal to one matrix at a time, and shareable between
processes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from niblick.components.base import ZEROS
from niblick.optim import (
    Group,
    Layout,
    Muon,
    Optimizers,
    ParameterGroup,
    Update,
    balanced,
    group_of,
    newton_schulz,
)
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


def _muon(layout: Layout, *, lr: float = 0.1, decay: float = 0.0) -> Muon:
    group = ParameterGroup(
        group=Group.MATRIX,
        stacks=layout.stacks(Group.MATRIX),
        size=layout.segment(Group.MATRIX).stop,
        dtype=torch.bfloat16,
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


@pytest.mark.parametrize("shape", [(3, 24, 8), (2, 8, 24), (2, 12, 12)])
def test_a_neurons_updates_are_divided_by_the_root_of_their_mean_square(
    shape: tuple[int, int, int],
) -> None:
    draw = torch.Generator().manual_seed(1)
    second = torch.zeros(shape[0] * max(shape[1:]))
    kept = {}
    for step in (1, 2, 3):
        updates = torch.randn(shape, generator=draw)
        found = balanced(updates, second, 0.9, step)
        for n, (matrix, given) in enumerate(zip(updates, found, strict=True)):
            rows, got = (matrix, given) if shape[1] >= shape[2] else (matrix.T, given.T)
            wanted = torch.empty_like(rows)
            for j, row in enumerate(rows):
                kept[n, j] = 0.9 * kept.get((n, j), 0.0) + 0.1 * float(row.square().mean())
                wanted[j] = row / (kept[n, j] / (1 - 0.9**step)) ** 0.5
            torch.testing.assert_close(got, wanted * (rows.norm() / wanted.norm()))
            if step == 1:
                torch.testing.assert_close(got.norm(dim=1), got.norm(dim=1).mean().expand(len(got)))


def test_a_neuron_that_does_not_move_stays_and_harms_none() -> None:
    updates = torch.ones(1, 4, 4)
    updates[0, 1] = 0
    found = balanced(updates, torch.zeros(4), 0.9, 1)
    assert torch.equal(found, updates)
    assert torch.equal(balanced(0 * updates, torch.zeros(4), 0.9, 1), 0 * updates)


class Together:
    """Processes as threads of this one: sums and gathers in the order of their ranks."""

    def __init__(self, size: int) -> None:
        self.size, self.given, self.barrier = size, [None] * size, threading.Barrier(size)

    def exchange(self, rank: int, tensor: torch.Tensor) -> list[torch.Tensor]:
        self.given[rank] = tensor.clone()
        self.barrier.wait()
        found = list(self.given)
        self.barrier.wait()
        return found


class One:
    """One of them, as an optimizer sees it."""

    def __init__(self, together: Together, rank: int) -> None:
        self.together, self.rank, self.size = together, rank, together.size

    def scatter(self, out: torch.Tensor, parts: torch.Tensor) -> Callable[[], None]:
        given = self.together.exchange(self.rank, parts)
        out.copy_(sum(each[self.rank] for each in given))
        return lambda: None

    def gather(self, out: torch.Tensor, own: torch.Tensor) -> Callable[[], None]:
        found = torch.stack(self.together.exchange(self.rank, own))
        return lambda: out.copy_(found)  # not there before it is waited for

    def sum(self, tensor: torch.Tensor) -> Callable[[], None]:
        tensor.copy_(sum(self.together.exchange(self.rank, tensor)))
        return lambda: None

    def sum_exactly(self, tensor: torch.Tensor) -> None:
        self.sum(tensor)


def _optimizers(
    layout: Layout, weights: torch.Tensor, processes: One | None = None, beta: float | None = None
) -> Optimizers:
    training = TrainingRecipe(muon=MuonRecipe(lr=0.1, weight_decay=0.1, neuron_beta=beta))
    return Optimizers(layout, weights, training, dtype=torch.bfloat16, processes=processes)


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize(("clip", "beta"), [(0.0, None), (0.3, None), (0.0, 0.9)])
def test_processes_that_share_the_matrices_reach_the_bits_of_one(
    size: int, clip: float, beta: float | None
) -> None:
    layout = Layout(make_plan(load_recipe("pocket").model).parameters)
    start = torch.randn(layout.total, generator=torch.Generator().manual_seed(1)) * 0.05
    # Sixteenths, in multiples of the number of processes: sums and means of them are exact.
    slopes = [
        torch.randint(-8, 9, (size, layout.total), generator=torch.Generator().manual_seed(seed))
        for seed in (2, 3)
    ]
    slopes = [each * (size / 16) for each in slopes]
    alone = start.clone()
    one = _optimizers(layout, alone, beta=beta)
    for slope in slopes:
        one.gradients.copy_(slope.mean(0))
        norm = one.clip(clip)
        one.step(1.0, 0.9)
    together, results = Together(size), {}

    def work(rank: int) -> None:
        weights = start.clone()
        mine = _optimizers(layout, weights, One(together, rank), beta)
        for slope in slopes:
            mine.gradients.copy_(slope[rank])
            mine.reduce()
            found = mine.clip(clip)
            mine.step(1.0, 0.9)
        mine.complete()
        kept = {name: t for name, t in mine.tensors().items() if name.startswith("matrix.")}
        results[rank] = weights, found, kept

    with ThreadPoolExecutor(size) as pool:
        list(pool.map(work, range(size)))
    for weights, found, kept in results.values():
        torch.testing.assert_close(found, norm, rtol=2e-3, atol=0)  # torch sums it in float32
        assert torch.equal(weights, results[0][0]), "all apply the same bits"
        if clip == 0:
            assert torch.equal(weights, alone)
            assert len(kept) == (1 if beta is None else 2)
            assert all(torch.equal(each, one.tensors()[name]) for name, each in kept.items())
        else:  # the norm is summed in another order
            torch.testing.assert_close(weights, alone, rtol=0, atol=2e-3)


def test_a_compiled_newton_schulz_is_the_plain_one() -> None:
    x = torch.randn(2, 16, 24, generator=torch.Generator().manual_seed(2))
    compiled = torch.compile(newton_schulz, dynamic=False, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, 5, torch.float32), newton_schulz(x, 5, torch.float32))
