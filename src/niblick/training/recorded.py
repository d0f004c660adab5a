"""Forward and backward of a micro-batch as a captured program: the same gradients to the bit,
without Python's share of the time.

The first micro-batch is computed both ways. Where they differ, or the computation cannot be
captured, there is no program. What is recorded is the model as it was then: hooks and operations
that it is given later are not seen.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from niblick.model import LanguageModel
from niblick.model.kernels import Kernels
from niblick.model.kernels.capture import NotRepeatableError, Program, capture
from niblick.model.kernels.ops import within

Loss = Callable[[Tensor, Tensor, Mapping[str, Tensor]], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Batch:
    """A micro-batch: ids (B, T) int64, dropout's factors (B, T, 1) by table, and the share of its
    loss in the step's.
    """

    inputs: Tensor
    targets: Tensor
    factors: Mapping[str, Tensor]
    share: float = 1.0

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All of them; the factors by their names' order."""
        return self.inputs, self.targets, *(self.factors[name] for name in sorted(self.factors))

    def clone(self) -> Batch:
        """The same in memory of its own."""
        return Batch(
            self.inputs.clone(),
            self.targets.clone(),
            {name: factor.clone() for name, factor in self.factors.items()},
            self.share,
        )


class RecordedLoss:
    """Gradients of micro-batches that are like the first one."""

    def __init__(self, loss: Loss, model: LanguageModel, kernels: Kernels) -> None:
        self._loss, self._kernels, self._words = loss, kernels, model.recipe.vocab_size
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._first: Batch | None = None  # the program reads its tensors
        self._kind: tuple[object, ...] = ()
        self.program: Program | None = None

    def backward(self, batch: Batch) -> Tensor | None:
        """Give each parameter its gradient, until the next call, and return the mean nll; None for
        a batch unlike the first.
        """
        if not (within(batch.inputs, self._words) and within(batch.targets, self._words)):
            return None
        if self._first is None:
            self._first, self._kind = batch.clone(), self._kind_of(batch)
            self.program = self._record(self._first)
        if self.program is None or self._kind != self._kind_of(batch):
            return None
        for mine, given in zip(self._first.tensors, batch.tensors, strict=True):
            mine.copy_(given)
        nll, *slopes = self.program()
        for parameter, slope in zip(self._parameters, slopes, strict=True):
            parameter.grad = slope
        assert nll is not None
        return nll.clone()

    def _kind_of(self, batch: Batch) -> tuple[object, ...]:
        """What a program is made for: names, shapes, the share, and where the parameters lie."""
        shapes = ((t.shape, t.dtype, t.device) for t in batch.tensors)
        return (
            batch.share,
            *sorted(batch.factors),
            *shapes,
            *(p.data_ptr() for p in self._parameters),
        )

    def rest(self) -> None:
        """Give the program's memory back until the next batch; gradients that were not moved
        elsewhere are lost.
        """
        if self.program is not None:
            self.program.rest()

    def _record(self, batch: Batch) -> Program | None:
        expected = [_digest(t) for t in self._compute(batch)]
        try:
            program = capture(self._kernels, lambda: self._compute(batch))
            if [_digest(t) for t in program()] == expected:
                return program
            reason = "it differs from the original"
        except (
            NotRepeatableError,
            AttributeError,
            OSError,
            RuntimeError,
            TypeError,
            ValueError,
        ) as error:
            reason = " ".join(str(error).split())[:200]
        warnings.warn(
            f"the training step is not recorded and takes a tenth longer: {reason}", stacklevel=2
        )
        return None

    def _compute(self, batch: Batch) -> Sequence[Tensor | None]:
        """The mean nll and the gradients."""
        loss, nll = self._loss(batch.inputs, batch.targets, batch.factors)
        slopes = torch.autograd.grad(
            loss * batch.share if batch.share < 1 else loss, self._parameters, allow_unused=True
        )
        return nll.detach(), *slopes


def _digest(t: Tensor | None) -> tuple[object, ...]:
    """Equal exactly where type, shape and all bits are."""
    if t is None:
        return ()
    return (
        t.dtype,
        t.shape,
        hashlib.blake2b(t.detach().reshape(-1).view(torch.uint8).numpy().data).digest(),
    )
