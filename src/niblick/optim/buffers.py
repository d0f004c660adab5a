"""Flat storage: every parameter's place in one contiguous buffer.

Guarantees: slots cover the buffer without overlap, group by group; parameters of one group and
shape are neighbours, so that a stack of equal matrices is a view. Weights, gradients, momenta and
averages share one layout: clipping, averaging, reducing and saving are single operations.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from math import prod

from torch import Tensor

from niblick.errors import TrainingError
from niblick.optim.groups import Group, group_of
from niblick.plan import Parameter, Role
from niblick.recipe.schema import TrainingRecipe

_ORDER = tuple(Group)


@dataclass(frozen=True)
class Slot:
    """One parameter's place: elements start .. start + size of the flat buffer."""

    name: str
    shape: tuple[int, ...]
    group: Group
    start: int
    role: Role

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    def view(self, flat: Tensor) -> Tensor:
        """This parameter inside the whole buffer `flat`."""
        return flat[self.start : self.start + self.size].view(self.shape)


@dataclass(frozen=True)
class Stack:
    """`count` neighbouring matrices of (rows, columns), `start` counted from their group's."""

    start: int
    count: int
    rows: int
    columns: int

    def view(self, flat: Tensor) -> Tensor:
        """The matrices inside their group's part `flat` as (count, rows, columns)."""
        size = self.count * self.rows * self.columns
        return flat[self.start : self.start + size].view(self.count, self.rows, self.columns)


class Layout:
    """The order and the offsets of all parameters of a plan, grouped as `training` says."""

    def __init__(
        self, parameters: Iterable[Parameter], training: TrainingRecipe | None = None
    ) -> None:
        parameters = list(parameters)
        named = () if training is None else training.muon.include
        if unknown := set(named) - {p.name for p in parameters}:
            raise TrainingError(f"training.muon.include: no parameter is called {min(unknown)!r}")
        grouped = [(group_of(p, training), p) for p in parameters]
        grouped.sort(key=lambda entry: (_ORDER.index(entry[0]), entry[1].shape, entry[1].name))
        slots, start = [], 0
        for group, p in grouped:
            slots.append(Slot(p.name, p.shape, group, start, p.role))
            start += p.size
        self.slots: tuple[Slot, ...] = tuple(slots)
        self.total = start

    def members(self, group: Group) -> list[Slot]:
        """The group's slots in order."""
        return [slot for slot in self.slots if slot.group is group]

    def segment(self, group: Group) -> slice:
        """The contiguous part of the buffer that holds `group`; empty where there is none of it."""
        members = self.members(group)
        if not members:
            return slice(0, 0)
        return slice(members[0].start, members[-1].start + members[-1].size)

    def stacks(self, group: Group) -> tuple[Stack, ...]:
        """The group's matrices as stacks of equal shape; more axes count as (first, rest)."""
        found, base = [], self.segment(group).start
        for shape, run in groupby(self.members(group), key=lambda slot: slot.shape):
            slots = list(run)
            found.append(Stack(slots[0].start - base, len(slots), prod(shape[:1]), prod(shape[1:])))
        return tuple(found)

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """Every parameter by name, as a view of `flat`."""
        return {slot.name: slot.view(flat) for slot in self.slots}

    @property
    def fingerprint(self) -> str:
        """Hash of names, shapes and order: buffers of equal fingerprint hold the same things."""
        text = "\n".join(f"{slot.name} {slot.shape} {slot.start}" for slot in self.slots)
        return hashlib.sha256(text.encode()).hexdigest()
