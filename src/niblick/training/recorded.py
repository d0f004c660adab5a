"""Forward and backward of a micro-batch as a recorded program, without modules and autograd.

The first micro-batch is computed both ways. Where they differ in a bit, or the computation cannot
be repeated, there is no program. What is recorded is the model as it was then.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from niblick.model import LanguageModel
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

    @property
    def kind(self) -> tuple[object, ...]:
        """What a program is made for: names, shapes and the weight."""
        shapes = ((t.shape, t.dtype, t.device) for t in self.tensors)
        return self.weight, *sorted(self.factors), *shapes


class RecordedLoss:
    """Gradients of micro-batches that are like the first one."""

    def __init__(self, loss: Loss, model: LanguageModel) -> None:
        self._loss, self._model = loss, model
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._kind: tuple[object, ...] | None = None
        self.program: Program | None = None

    def backward(self, batch: Batch) -> Tensor | None:
        """Give each parameter its gradient and return the mean nll.

        None, and no gradients, for a batch unlike the first or a model with adapters.
        """
        if self._model.adapted:
            return None
        if self._kind is None:
            self._kind, self.program = batch.kind, self._record(batch)
        if self.program is None or self._kind != batch.kind:
            return None
        (nll,), grads = self.program(*batch.tensors)
        for parameter, grad in zip(self._parameters, grads, strict=True):
            parameter.grad = grad
        return nll

    def _record(self, batch: Batch) -> Program | None:
        try:
            program = self._program(batch)
            if self._repeats(program, batch):
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
        return Program(tape, loss, [nll], self._parameters)

    def _weighted(self, batch: Batch) -> tuple[Tensor, Tensor]:
        loss, nll = self._loss(batch.inputs, batch.targets, batch.factors)
        return loss * batch.weight if batch.weight < 1 else loss, nll

    def _repeats(self, program: Program, batch: Batch) -> bool:
        """Whether the program gives what the original gives, to the bit."""
        (nll,), grads = program(*batch.tensors)
        loss, expected = self._weighted(batch)
        originals = torch.autograd.grad(loss, self._parameters, allow_unused=True)
        return _same(nll, expected) and all(map(_same, grads, originals))


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    """Whether type, shape and all bits are equal."""
    if one is None or other is None:
        return one is other
    alike = one.dtype == other.dtype and one.shape == other.shape
    bits = (t.detach().reshape(-1).view(torch.uint8) for t in (one, other))
    return alike and torch.equal(*bits)
