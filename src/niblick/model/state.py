"""Decode state: rings of keys and values, vectors for shifts; as large as the plan says.

Calls never write into the state they were given, so a state can be kept and branched from.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from niblick.plan import Plan


@dataclass(frozen=True)
class State:
    """Everything a model remembers after `position` tokens.

    `tensors` maps an entry's name to (B, *shape); rings are in order of time, their last entries
    the newest. `context` is the declared context: how many positions full attention sees and what
    the rotary base is rescaled for.
    """

    tensors: dict[str, Tensor]
    position: int
    context: int

    @classmethod
    def empty(
        cls,
        plan: Plan,
        batch: int,
        *,
        context: int | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> State:
        """The state before the first token; full layers' rings hold `context` positions (the
        recipe's if None).
        """
        declared = context or plan.model.context
        tensors = {}
        for entry in plan.state:
            shape = [batch, *entry.shape]
            if entry.context_axis is not None:
                shape[1 + entry.context_axis] = declared
            kind = torch.int64 if entry.kind == "int64" else dtype
            tensors[entry.name] = torch.full(shape, entry.fill, dtype=kind, device=device)
        return cls(tensors, 0, declared)

    @property
    def batch(self) -> int:
        """Number of sequences B."""
        return next(iter(self.tensors.values())).shape[0] if self.tensors else 1

    @property
    def nbytes(self) -> int:
        """Bytes held by the tensors."""
        return sum(t.numel() * t.element_size() for t in self.tensors.values())

    def select(self, rows: Tensor) -> State:
        """The state of the given batch rows (int64 indices), copied."""
        return State(
            {k: v.index_select(0, rows) for k, v in self.tensors.items()},
            self.position,
            self.context,
        )
