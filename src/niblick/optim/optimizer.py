"""The one optimizer of a run: Muon and two Adam groups over a flat buffer, with all of its state in
a few tensors.

Guarantees: which setting a parameter gets follows from its role alone; `tensors()` is the whole
state, and loading it back continues bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from niblick.model.kernels import Kernels
from niblick.optim.buffers import Layout
from niblick.optim.groups import Group
from niblick.optim.muon import Muon
from niblick.recipe.schema import AdamRecipe, MuonRecipe


class Optimizer:
    """Applies flat float32 gradients to flat float32 weights (both in `layout`'s order)."""

    def __init__(
        self,
        layout: Layout,
        weights: Tensor,
        *,
        muon: MuonRecipe,
        adam: AdamRecipe,
        dtype: torch.dtype,
        share: tuple[int, int] = (0, 1),
        gather: Callable[[Tensor], None] | None = None,
    ) -> None:
        self.layout, self.weights, self.muon_recipe, self.adam_recipe = layout, weights, muon, adam
        self.gradients = torch.zeros_like(weights)
        self.momentum = torch.zeros_like(weights[layout.segment(Group.MUON)])
        self.first = torch.zeros_like(weights[self.momentum.numel() :])
        self.second = torch.zeros_like(self.first)
        self.steps = 0
        self._muon = Muon(
            layout.stacks(Group.MUON),
            nesterov=muon.nesterov,
            steps=muon.newton_schulz_steps,
            dtype=dtype,
            share=share,
            gather=gather,
        )
        self.use(None)

    def use(self, kernels: Kernels | None) -> None:
        """Take the compiled forms of Newton-Schulz and Adam, equal up to rounding (None: plain
        torch).
        """
        self._kernels = self._muon.kernels = kernels
        self._share = 1.0  # of the gradients that the next step takes

    @torch.no_grad()
    def clip(self, limit: float) -> Tensor:
        """Scale all gradients so that their global norm is at most `limit` (0: no limit); the norm
        before.

        On kernels the factor waits for `step`, which reads every gradient anyway.
        """
        norm: Tensor = torch.linalg.vector_norm(self.gradients)
        self._share = 1.0
        if limit > 0 and self._kernels is not None:
            self._share = min(
                limit / (float(norm) + 1e-6), 1.0
            )  # in this order what is not a number stays so
        elif limit > 0:
            self.gradients.mul_((limit / (norm + 1e-6)).clamp(max=1.0))
        return norm

    @torch.no_grad()
    def step(self, multiplier: float, momentum: float) -> None:
        """One update at learning rates times `multiplier`; gradients are used up."""
        self.steps += 1
        matrices = self.layout.segment(Group.MUON)
        if self.momentum.numel():
            self._muon.step(
                self.weights[matrices],
                self.gradients[matrices],
                self.momentum,
                lr=self.muon_recipe.lr * multiplier,
                beta=momentum,
                decay=self.muon_recipe.weight_decay,
                share=self._share,
            )
        self._adam(Group.EMBEDDING, self.adam_recipe.embedding_lr * multiplier)
        self._adam(Group.SCALAR, self.adam_recipe.scalar_lr * multiplier)
        self._share = 1.0

    def _adam(self, group: Group, lr: float) -> None:
        """AdamW (Loshchilov & Hutter 2019) on one contiguous group."""
        part = self.layout.segment(group)
        if part.start == part.stop:
            return
        recipe, offset = self.adam_recipe, self.momentum.numel()
        weights, gradients = self.weights[part], self.gradients[part]
        inner = slice(part.start - offset, part.stop - offset)
        first, second = self.first[inner], self.second[inner]
        beta1, beta2 = recipe.betas
        rate, keep = lr / (1 - beta1**self.steps), 1 - lr * recipe.weight_decay
        correct = (1 - beta2**self.steps) ** -0.5
        if self._kernels is not None:
            self._kernels(
                "adam",
                weights.dtype,
                weights,
                gradients,
                self._share,
                first,
                second,
                beta1,
                beta2,
                recipe.eps,
                rate,
                correct,
                keep,
                weights.numel(),
            )
            return
        first.lerp_(gradients, 1 - beta1)
        second.mul_(beta2).addcmul_(gradients, gradients, value=1 - beta2)
        scale = second.sqrt().mul_(correct).add_(recipe.eps)
        if recipe.weight_decay:
            weights.mul_(keep)
        weights.addcdiv_(first, scale, value=-rate)

    def tensors(self) -> dict[str, Tensor]:
        """The state that a checkpoint keeps, by name; `load` takes it back."""
        return {"momentum": self.momentum, "adam_first": self.first, "adam_second": self.second}

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor], steps: int) -> None:
        """Continue from saved state after `steps` updates."""
        for name, target in self.tensors().items():
            target.copy_(tensors[name])
        self.steps = steps
