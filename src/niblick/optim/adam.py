"""Adam on flat buffers: decoupled decay (Loshchilov & Hutter 2019) or the published L2 form."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from niblick.optim.base import OPTIMIZERS, ParameterGroup, Update
from niblick.optim.groups import Group
from niblick.recipe.schema import TrainingRecipe

if TYPE_CHECKING:
    from niblick.model.kernels import Kernels


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

    def state(self) -> dict[str, Tensor]:
        """The two moments."""
        return {"first": self.first, "second": self.second}

    def use(self, kernels: Kernels | None) -> None:
        """See `Optimizer.use`."""
        self._kernels = kernels

    @torch.no_grad()
    def update(self, weights: Tensor, gradients: Tensor, at: Update) -> None:
        """See `Optimizer.update`."""
        recipe, lr = self.recipe, self.lr * at.multiplier
        beta1, beta2 = recipe.betas
        rate, keep = lr / (1 - beta1**at.step), 1 - lr * self.decay
        correct = (1 - beta2**at.step) ** -0.5
        scale = at.grad_scale
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
