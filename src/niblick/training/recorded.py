"""Forward and backward of a micro-batch as a recorded program, without modules and autograd.

The first micro-batch is computed both ways. Where they differ in a bit, or the computation cannot
be repeated, there is no program. What is recorded is the model as it was then.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from niblick.model import LanguageModel
from niblick.model.tree import Linear
from niblick.plan import of_member
from niblick.runtime import return_freed_memory
from niblick.training.tape import NotRepeatableError, Program, Tape

Loss = Callable[[Tensor, Tensor, Mapping[str, Tensor]], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Batch:
    """A micro-batch: ids (B, T) int64, dropout's factors (B, T, 1) by table.

    `weight` is the part of the step's loss that it makes up.
    """

    inputs: Tensor
    targets: Tensor
    factors: Mapping[str, Tensor]
    weight: float = 1.0

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All of them; the factors by their names' order."""
        return self.inputs, self.targets, *(self.factors[name] for name in sorted(self.factors))

    def of_member(self, index: int) -> Batch:
        """What a member of an ensemble gets of it."""
        return replace(self, factors=of_member(self.factors, index))

    @property
    def kind(self) -> tuple[object, ...]:
        """What a program is made for: names, shapes and the weight."""
        shapes = ((t.shape, t.dtype, t.device) for t in self.tensors)
        return self.weight, *sorted(self.factors), *shapes


class RecordedLoss:
    """Gradients of micro-batches that are like the first one."""

    def __init__(self, loss: Loss, model: LanguageModel) -> None:
        self._loss = loss
        self._linears = [each for each in model.modules() if isinstance(each, Linear)]
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self._kind: tuple[object, ...] | None = None
        self.program: Program | None = None

    def backward(self, batch: Batch) -> Tensor | None:
        """Give each parameter its gradient and return the mean nll.

        None, and no gradients, for a batch unlike the first or a model with adapters.
        """
        found = self.gradients(batch)
        if found is None:
            return None
        nll, grads = found
        for parameter, grad in zip(self.parameters, grads, strict=True):
            parameter.grad = grad
        return nll

    def gradients(self, batch: Batch) -> tuple[Tensor, list[Tensor | None]] | None:
        """The mean nll and each parameter's gradient; None as `backward` says."""
        if any(each.extra for each in self._linears):
            return None
        if self._kind is None:
            self._kind, self.program = batch.kind, self._record(batch)
        if self.program is None or self._kind != batch.kind:
            return None
        (nll,), grads = self.program(*batch.tensors)
        return nll, grads

    def _record(self, batch: Batch) -> Program | None:
        """A program that gives what the original gives, to the bit.

        In between freed memory goes back, so that one need not add to the other's.
        """
        try:
            loss, nll = self._weighted(batch)
            grads = torch.autograd.grad(loss, self.parameters, allow_unused=True)
            expected = [_digest(t) for t in (nll, *grads)]
            del loss, nll, grads
            return_freed_memory()
            program = self._program(batch)
            return_freed_memory()
            results, found = program(*batch.tensors)
            if [_digest(t) for t in (*results, *found)] == expected:
                return program
            reason = "it differs from the original"
        except (NotRepeatableError, AttributeError, RuntimeError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
        warnings.warn(
            f"the training step is not recorded and takes a tenth longer: {reason}", stacklevel=2
        )
        return None

    def _program(self, batch: Batch) -> Program:
        with Tape(batch.tensors) as tape:
            loss, nll = self._weighted(batch)
        return Program(tape, loss, [nll], self.parameters)

    def _weighted(self, batch: Batch) -> tuple[Tensor, Tensor]:
        loss, nll = self._loss(batch.inputs, batch.targets, batch.factors)
        return loss * batch.weight if batch.weight < 1 else loss, nll


class RecordedMembers:
    """The members of an ensemble, each a program; at most `threads` of them at once, each on one
    thread, which changes no bit.
    """

    def __init__(self, members: Sequence[RecordedLoss], *, threads: int) -> None:
        self._members = members
        self._pool: ThreadPoolExecutor | None = None
        if threads > 1:
            self._pool = ThreadPoolExecutor(
                min(threads, len(members)), initializer=partial(torch.set_num_threads, 1)
            )
            self._pool.submit(int).result()
            torch.set_num_threads(threads)

    def backward(self, batch: Batch) -> Tensor | None:
        """See `RecordedLoss.backward`."""
        parts = [batch.of_member(i) for i in range(len(self._members))]
        known = all(member.program for member in self._members)
        spread = self._pool.map if self._pool is not None and known else map
        found = [each for each in spread(RecordedLoss.gradients, self._members, parts) if each]
        if len(found) < len(parts):
            return None
        sums: dict[Tensor, Tensor | None] = {}
        for member, (_, grads) in zip(self._members, found, strict=True):
            for parameter, grad in zip(member.parameters, grads, strict=True):
                before = sums.get(parameter)  # of an earlier member that has it, too
                sums[parameter] = grad if before is None or grad is None else before + grad
        for own, total in sums.items():
            own.grad = total
        return torch.stack([nll for nll, _ in found]).mean()


def _digest(t: Tensor | None) -> tuple[object, ...]:
    """Equal exactly where type, shape and all bits are."""
    if t is None:
        return ()
    data = t.detach().reshape(-1).view(torch.uint8).numpy().data
    return t.dtype, t.shape, hashlib.blake2b(data).digest()
