"""All optimizers of a run over the flat buffers: one for each group of parameters.

Guarantees: which optimizer a parameter gets follows from its role and the recipe; `tensors()` is
the whole state, and loading it back continues bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from math import isfinite

import torch
from torch import Tensor

from niblick.model.kernels import Kernels
from niblick.optim import adam  # noqa: F401  (it registers itself)
from niblick.optim.base import OPTIMIZERS, Optimizer, ParameterGroup, Update
from niblick.optim.buffers import Layout, Slot
from niblick.optim.groups import Group
from niblick.optim.muon import Muon
from niblick.optim.sharding import Bucket, Processes, Shards, mean_at
from niblick.recipe.schema import TrainingRecipe

BUCKET = 1 << 24  # elements that one transfer sums


class Optimizers:
    """Applies flat float32 gradients to flat float32 weights (both in `layout`'s order)."""

    def __init__(
        self,
        layout: Layout,
        weights: Tensor,
        training: TrainingRecipe,
        *,
        dtype: torch.dtype,
        processes: Processes | None = None,
    ) -> None:
        self.layout, self.weights, self.processes = layout, weights, processes
        self.gradients = torch.zeros_like(weights)
        self.steps, self._multiplier = 0, 0.0
        self._norm = weights.new_zeros(())
        names = training.optimizer.model_dump() | {Group.HEAD: "adam"}
        self.by_group: dict[Group, Optimizer] = {}
        for group in Group:
            part = layout.segment(group)
            if part.stop == part.start:
                continue
            made_for = ParameterGroup(
                group=group,
                stacks=layout.stacks(group),
                size=part.stop - part.start,
                dtype=dtype,
                device=weights.device,
                processes=processes,
            )
            self.by_group[group] = OPTIMIZERS[names[group]](made_for, training)
        self.use(None)

    def use(self, kernels: Kernels | None) -> None:
        """Take the compiled forms of all optimizers (None: plain torch)."""
        self._kernels, self._grad_scale = kernels, 1.0
        for optimizer in self.by_group.values():
            optimizer.use(kernels)

    def compile(self, backend: str = "inductor") -> None:
        """Have the compiler fuse what optimizers compute, where it gains something."""
        for optimizer in self.by_group.values():
            compiles = getattr(optimizer, "compile", None)
            if compiles is not None:
                compiles(backend)

    @torch.no_grad()
    def reduce(self) -> None:
        """Make the gradients the mean over all processes; those of divided matrices only where
        they are needed. All transfers are under way together.
        """
        if self.processes is None:
            return
        waiting, rest = [], []
        for group, optimizer in self.by_group.items():
            part, shards = self.gradients[self.layout.segment(group)], _shards(optimizer)
            if shards is not None:
                waiting += list(shards.reduce(part))
            else:
                rest += list(torch.split(part, BUCKET))
        waiting += [self.processes.sum(part) for part in rest]
        for wait in waiting:
            wait()
        for part in rest:
            part.div_(self.processes.size)

    def complete(self) -> None:
        """Have the whole state in every process; all must call this before one saves it."""
        for optimizer in self.by_group.values():
            if isinstance(optimizer, Muon):
                optimizer.complete()

    def _norm_of_all(self) -> Tensor:
        """The norm of the whole gradient, which may be divided between processes."""
        if self.processes is None:
            norm: Tensor = torch.linalg.vector_norm(self.gradients)
            return norm
        own, alike = self.weights.new_zeros(()), self.weights.new_zeros(())
        for group, optimizer in self.by_group.items():
            part, shards = self.gradients[self.layout.segment(group)], _shards(optimizer)
            if shards is None:
                alike += part.square().sum()
            else:
                own += sum(share.view(part).square().sum() for share in shards.shares)
        exact = own.double() if own.device.type != "mps" else own
        self.processes.sum_exactly(exact)
        return (exact + alike).sqrt().to(own.dtype)

    def buckets(self) -> list[Bucket]:
        """All gradients, in the parts in which they are sent while others are computed."""
        found, first = [], 0
        assert self.processes is not None
        for group, optimizer in self.by_group.items():
            members, shards = self.layout.members(group), _shards(optimizer)
            if shards is not None:
                part = self.gradients[self.layout.segment(group)]
                found += list(shards.buckets(part, first))
            else:
                found += self._runs(members, first)
            first += len(members)
        return found

    def _runs(self, slots: list[Slot], first: int) -> Iterator[Bucket]:
        """Neighbouring parameters of at most BUCKET elements together, or one that is larger."""
        assert self.processes is not None
        start = 0
        for end in range(1, len(slots) + 1):
            begin, stop = slots[start].start, slots[end - 1].start + slots[end - 1].size
            if end == len(slots) or stop + slots[end].size - begin > BUCKET:
                send = partial(mean_at, self.processes, None, self.gradients[begin:stop])
                yield Bucket(range(first + start, first + end), send)
                start = end

    @torch.no_grad()
    def clip(self, limit: float) -> Tensor:
        """Scale all gradients to a global norm of at most `limit` (0: no limit); the norm before.

        On kernels the factor waits for `step`, which reads every gradient anyway.
        """
        norm = self._norm_of_all()
        self._norm = norm
        self._grad_scale = 1.0
        if limit > 0 and self._kernels is not None:
            # In this order what is not a number stays so.
            self._grad_scale = min(limit / (float(norm) + 1e-6), 1.0)
        elif limit > 0:
            self.gradients.mul_((limit / (norm + 1e-6)).clamp(max=1.0))
        return norm

    @torch.no_grad()
    def step(self, multiplier: float, momentum: float) -> None:
        """One update at learning rates times `multiplier`; gradients are used up."""
        self.steps, self._multiplier = self.steps + 1, multiplier
        at = Update(
            step=self.steps, multiplier=multiplier, momentum=momentum, grad_scale=self._grad_scale
        )
        for group, optimizer in self.by_group.items():
            part = self.layout.segment(group)
            optimizer.update(self.weights[part], self.gradients[part], at)
        self._grad_scale = 1.0

    @torch.no_grad()
    def warm_up(self) -> None:
        """Take a step that changes nothing, so that what it needs is compiled."""
        kept = [(tensor, tensor.clone()) for tensor in (self.weights, *self.tensors().values())]
        steps = self.steps
        self.gradients.zero_()
        self.clip(1.0)
        self.step(0.0, 0.9)
        self.steps = steps
        for tensor, before in kept:
            tensor.copy_(before)

    def measures(self) -> dict[str, float | None]:
        """Of the last step: the gradients' norm before clipping (None where it is no number), and
        each group's learning rate.
        """
        norm = float(self._norm)
        rates = {f"lr_{g}": each.lr * self._multiplier for g, each in self.by_group.items()}
        return {"grad_norm": norm if isfinite(norm) else None, **rates}

    def tensors(self) -> dict[str, Tensor]:
        """The state that a checkpoint keeps, as "group.name"; `load` takes it back."""
        return {
            f"{group}.{name}": tensor
            for group, optimizer in self.by_group.items()
            for name, tensor in optimizer.state().items()
        }

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor], steps: int) -> None:
        """Continue from saved state after `steps` updates."""
        tensors = self._renamed(tensors)
        for name, target in self.tensors().items():
            target.copy_(tensors[name])
        self.steps = steps

    def _renamed(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Version 0.1 kept Adam's moments of both its groups in one buffer each."""
        if "momentum" not in tensors:
            return tensors
        found = {"matrix.momentum": tensors["momentum"]}
        offset = self.layout.segment(Group.MATRIX).stop
        for group in (Group.EMBEDDING, Group.CONTROL):
            part = self.layout.segment(group)
            inner = slice(part.start - offset, part.stop - offset)
            for name in ("first", "second"):
                found[f"{group}.{name}"] = tensors[f"adam_{name}"][inner]
        return found


def _shards(optimizer: Optimizer) -> Shards | None:
    """What an optimizer divides between processes, where it does."""
    shards = getattr(optimizer, "shards", None)
    return shards if isinstance(shards, Shards) else None
