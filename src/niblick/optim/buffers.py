"""Flat storage: every parameter's place in one contiguous buffer, groups and equal shapes side by
side.

Guarantees: slots cover the buffer without overlap, group by group; parameters of one group and
shape are neighbours, so that a stack of equal matrices is a view. Weights, gradients, momenta and
averages share one layout, which makes clipping, averaging, all-reducing and saving single
operations on single tensors.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from math import prod

from torch import Tensor

from niblick.optim.groups import Group, group_of
from niblick.plan import Parameter

_ORDER = tuple(Group)


@dataclass(frozen=True)
class Slot:
    """One parameter's place: elements start .. start + size of the flat buffer."""

    name: str
    shape: tuple[int, ...]
    group: Group
    start: int

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    def view(self, flat: Tensor, offset: int = 0) -> Tensor:
        """This parameter inside `flat`, whose first element is element `offset` of the whole
        buffer.
        """
        return flat[self.start - offset : self.start - offset + self.size].view(self.shape)


@dataclass(frozen=True)
class Stack:
    """`count` neighbouring matrices of shape (rows, columns)."""

    start: int
    count: int
    rows: int
    columns: int

    def view(self, flat: Tensor) -> Tensor:
        """The matrices inside `flat` as (count, rows, columns)."""
        size = self.count * self.rows * self.columns
        return flat[self.start : self.start + size].view(self.count, self.rows, self.columns)


class Layout:
    """The order and the offsets of all parameters of a plan."""

    def __init__(self, parameters: Iterable[Parameter]) -> None:
        ordered = sorted(
            parameters, key=lambda p: (_ORDER.index(group_of(p.role)), p.shape, p.name)
        )
        slots, start = [], 0
        for p in ordered:
            slots.append(Slot(p.name, p.shape, group_of(p.role), start))
            start += p.size
        self.slots: tuple[Slot, ...] = tuple(slots)
        self.total = start

    def segment(self, group: Group) -> slice:
        """The contiguous part of the buffer that holds `group`; empty where the plan has none of
        it.
        """
        members = [slot for slot in self.slots if slot.group is group]
        if not members:
            return slice(0, 0)
        return slice(members[0].start, members[-1].start + members[-1].size)

    def stacks(self, group: Group) -> tuple[Stack, ...]:
        """The group's matrices as stacks of equal shape; a tensor of more axes counts as (first,
        rest).
        """
        members = (slot for slot in self.slots if slot.group is group)
        found = []
        for shape, run in groupby(members, key=lambda slot: slot.shape):
            slots = list(run)
            found.append(Stack(slots[0].start, len(slots), shape[0], prod(shape[1:])))
        return tuple(found)

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """Every parameter by name, as a view of `flat`."""
        return {slot.name: slot.view(flat) for slot in self.slots}

    @property
    def fingerprint(self) -> str:
        """Hash of names, shapes and order: buffers of equal fingerprint hold the same things."""
        text = "\n".join(f"{slot.name} {slot.shape} {slot.start}" for slot in self.slots)
        return hashlib.sha256(text.encode()).hexdigest()
