"""Adam on flat buffers: decoupled decay (Loshchilov & Hutter 2019) or the published L2 form.

On an accelerator a group's step is one compiled kernel; its numbers of the step are a tensor, so
that a new step compiles nothing and waits for nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from niblick.model.graphs import one_graph
from niblick.optim.base import OPTIMIZERS, ParameterGroup, Update
from niblick.optim.groups import Group
from niblick.recipe.schema import TrainingRecipe

if TYPE_CHECKING:
    from niblick.model.kernels import Kernels


def descend(
    weights: Tensor,
    gradients: Tensor,
    first: Tensor,
    second: Tensor,
    numbers: Tensor,
    betas: tuple[float, float],
    eps: float,
) -> None:
    """One step of flat float32 `weights` and their moments, in place; `gradients` are only read.

    `numbers` (5,): the factor on gradients, the decay added to them, the rate without its bias, the
    factor that decays weights, and what corrects the bias of the root. Equal to `Adam.update` in
    plain torch to rounding.
    """
    scale, decay, rate, keep, correct = numbers.unbind()
    beta1, beta2 = betas
    slopes = scale * gradients + decay * weights
    first.lerp_(slopes, 1 - beta1)
    second.mul_(beta2).add_((1 - beta2) * slopes * slopes)
    root = second.sqrt() * correct + eps
    weights.copy_(keep * weights - rate * (first / root))


@OPTIMIZERS.register("adam")
class Adam:
    """Elementwise Adam; a head with a rate of its own has no decay (systems.md section 7)."""

    def __init__(self, group: ParameterGroup, training: TrainingRecipe) -> None:
        self.recipe = recipe = training.adam
        rates = {Group.EMBEDDING: recipe.embedding_lr, Group.HEAD: recipe.head_lr or 0.0}
        self.lr = rates.get(group.group, recipe.scalar_lr)
        self.decay = 0.0 if group.group is Group.HEAD else recipe.weight_decay
        self.first = torch.zeros(group.size, device=group.device)
        self.second = torch.zeros_like(self.first)
        self._kernels: Kernels | None = None
        self._compiled: Any = None

    def state(self) -> dict[str, Tensor]:
        """The two moments."""
        return {"first": self.first, "second": self.second}

    def use(self, kernels: Kernels | None) -> None:
        """See `Optimizer.use`."""
        self._kernels = kernels

    def compile(self, backend: str) -> None:
        """Compute a step as one kernel, where weights are on an accelerator."""
        self._compiled = one_graph(descend, backend)

    @torch.no_grad()
    def update(self, weights: Tensor, gradients: Tensor, at: Update) -> None:
        """See `Optimizer.update`."""
        recipe, lr = self.recipe, self.lr * at.multiplier
        beta1, beta2 = recipe.betas
        rate, keep = lr / (1 - beta1**at.step), 1 - lr * self.decay
        correct = (1 - beta2**at.step) ** -0.5
        scale = at.grad_scale
        if self._compiled is not None:
            added = 0.0 if recipe.decoupled else self.decay
            values = (scale, added, rate, keep if recipe.decoupled else 1.0, correct)
            numbers = _on(weights.device, values)
            self._compiled(
                weights, gradients, self.first, self.second, numbers, recipe.betas, recipe.eps
            )
            return
        if not recipe.decoupled and self.decay:
            gradients.mul_(scale).add_(weights, alpha=self.decay)
            scale, keep = 1.0, 1.0
        if self._kernels is not None:
            moments = (self.first, self.second, beta1, beta2, recipe.eps, rate, correct, keep)
            self._kernels(
                "adam", weights.dtype, weights, gradients, scale, *moments, weights.numel()
            )
            return
        if scale != 1:
            gradients.mul_(scale)
        self.first.lerp_(gradients, 1 - beta1)
        self.second.mul_(beta2).addcmul_(gradients, gradients, value=1 - beta2)
        root = self.second.sqrt().mul_(correct).add_(recipe.eps)
        if keep != 1:
            weights.mul_(keep)
        weights.addcdiv_(self.first, root, value=-rate)


def _on(device: torch.device, values: tuple[float, ...]) -> Tensor:
    """Numbers on a device, without waiting for what it does."""
    on_cuda = device.type == "cuda"
    return torch.tensor(values, pin_memory=on_cuda).to(device, non_blocking=on_cuda)
