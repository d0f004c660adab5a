"""Forward and backward of a micro-batch as one recorded graph, without modules and autograd.

The graph is what `torch.fx` traces of the loss and its gradients: the operators that are run, the
kernels' among them, in straight-line code that frees what it no longer needs. The first micro-batch
is computed both ways. Where they differ in a bit, or the computation cannot be traced, there is no
graph. What is recorded is the model as it was then.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import GraphModule

from niblick.model import LanguageModel

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
        """What a graph is made for: names, shapes and the weight."""
        shapes = ((t.shape, t.dtype, t.device) for t in self.tensors)
        return self.weight, *sorted(self.factors), *shapes


class RecordedLoss:
    """Gradients of micro-batches that are like the first one."""

    def __init__(self, loss: Loss, model: LanguageModel) -> None:
        self._loss, self._model = loss, model
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._kind: tuple[object, ...] | None = None
        self.graph: GraphModule | None = None

    def backward(self, batch: Batch) -> Tensor | None:
        """Give each parameter its gradient and return the mean nll.

        None, and no gradients, for a batch unlike the first or a model with adapters.
        """
        if self._model.adapted:
            return None
        if self._kind is None:
            self._kind, self.graph = batch.kind, self._record(batch)
        if self.graph is None or self._kind != batch.kind:
            return None
        nll, *grads = self._run(self.graph, batch)
        for parameter, grad in zip(self._parameters, grads, strict=True):
            parameter.grad = grad
        assert nll is not None
        return nll

    @torch.no_grad()
    def _run(self, graph: GraphModule, batch: Batch) -> Sequence[Tensor | None]:
        found: Sequence[Tensor | None] = graph(*batch.tensors)
        return found

    def _record(self, batch: Batch) -> GraphModule | None:
        from torch.fx.experimental.proxy_tensor import make_fx

        names = sorted(batch.factors)

        def compute(inputs: Tensor, targets: Tensor, *factors: Tensor) -> Sequence[Tensor | None]:
            loss, nll = self._loss(inputs, targets, dict(zip(names, factors, strict=True)))
            weighted = loss * batch.weight if batch.weight < 1 else loss
            grads = torch.autograd.grad(weighted, self._parameters, allow_unused=True)
            return nll.detach(), *grads

        try:
            graph = make_fx(compute)(*batch.tensors)
            expected = compute(*batch.tensors)
            if all(map(_same, self._run(graph, batch), expected)):
                return graph
            reason = "it differs from the original"
        except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
        warnings.warn(f"the training step is not recorded and takes longer: {reason}", stacklevel=2)
        return None


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    """Whether type, shape and all bits are equal."""
    if one is None or other is None:
        return one is other
    alike = one.dtype == other.dtype and one.shape == other.shape
    bits = (t.detach().reshape(-1).view(torch.uint8) for t in (one, other))
    return alike and torch.equal(*bits)
