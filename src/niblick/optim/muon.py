"""Muon: momentum whose matrices are orthogonalised by Newton-Schulz, over stacks of equal shape at
once.

The update of an (out, in) matrix is scaled by max(1, out/in)^0.5; weight decay is decoupled
(systems.md section 1). Matrix products run in bfloat16 where the device multiplies it in hardware,
else in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from niblick.model.kernels import Kernels
from niblick.optim.buffers import Stack

SIDE = 32  # the kernel takes sides that are multiples of it
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # the quintic's, published with Muon


def newton_schulz(gradients: Tensor, steps: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Approximately nearest semi-orthogonal matrices of (N, rows, columns), each by itself, in
    `dtype`.

    Singular values end between about 0.7 and 1.2, as with the published quintic.
    """
    a, b, c = COEFFICIENTS
    tall = gradients.shape[1] > gradients.shape[2]
    x = (gradients / (gradients.norm(dim=(1, 2), keepdim=True) + 1e-7)).to(dtype)
    if tall:
        x = x.mT.contiguous()
    for _ in range(steps):
        gram = torch.bmm(x, x.mT)
        poly = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, poly, x, beta=a)
    out: Tensor = x.mT if tall else x
    return out


def _by_kernel(kernels: Kernels, gradients: Tensor, steps: int) -> Tensor:
    """`newton_schulz` in bfloat16 by the kernel that computes symmetric products by half."""
    out = torch.empty_like(gradients, dtype=torch.bfloat16)
    kernels("newton", out.dtype, gradients, out, *COEFFICIENTS, steps, *gradients.shape)
    return out


class Muon:
    """Momentum and orthogonalised updates for the matrices of a flat buffer.

    `share` is (rank, processes): each process orthogonalises its part of every stack, and `gather`
    sums the parts, of which all but one are zero, so that every process applies the same bits.
    """

    def __init__(
        self,
        stacks: Sequence[Stack],
        *,
        nesterov: bool,
        steps: int,
        dtype: torch.dtype,
        share: tuple[int, int] = (0, 1),
        gather: Callable[[Tensor], None] | None = None,
    ) -> None:
        self.stacks, self.nesterov, self.steps, self.dtype = tuple(stacks), nesterov, steps, dtype
        self.share, self.gather = share, gather
        self.kernels: Kernels | None = None  # set where training runs on kernels

    @torch.no_grad()
    def step(
        self,
        weights: Tensor,
        gradients: Tensor,
        momentum: Tensor,
        *,
        lr: float,
        beta: float,
        decay: float,
        share: float = 1.0,
    ) -> None:
        """Update `weights` and `momentum` (flat, float32) in place; `gradients`, taken times
        `share`, is overwritten.
        """
        if self.kernels is not None:
            self.kernels(
                "momentum",
                gradients.dtype,
                gradients,
                share,
                momentum,
                beta,
                self.nesterov,
                gradients.numel(),
            )
        else:
            momentum.lerp_(gradients.mul_(share) if share != 1 else gradients, 1 - beta)
            gradients = gradients.lerp_(momentum, beta) if self.nesterov else momentum
        updates = self._orthogonal(gradients)
        for stack in self.stacks:
            scale = max(1.0, stack.rows / stack.columns) ** 0.5
            self._descend(stack.view(weights), stack.view(updates), 1 - lr * decay, lr * scale)

    def _descend(self, weights: Tensor, updates: Tensor, keep: float, rate: float) -> None:
        if self.kernels is not None and updates.dtype is torch.bfloat16:
            self.kernels("descend", updates.dtype, weights, updates, keep, rate, weights.numel())
        else:
            weights.mul_(keep).sub_(updates, alpha=rate)

    def _orthogonal(self, direction: Tensor) -> Tensor:
        rank, size = self.share
        updates = torch.zeros_like(direction, dtype=self.dtype)
        for stack in self.stacks:
            mine = slice(stack.count * rank // size, stack.count * (rank + 1) // size)
            if mine.start < mine.stop:
                stack.view(updates)[mine] = self._nearest(stack.view(direction)[mine])
        if self.gather is not None:
            self.gather(updates)
        return updates

    def _nearest(self, matrices: Tensor) -> Tensor:
        kernels, whole = (
            self.kernels,
            matrices.shape[1] % SIDE == 0 and matrices.shape[2] % SIDE == 0,
        )
        if kernels is None or not kernels.attends or not whole or self.dtype is not torch.bfloat16:
            return newton_schulz(matrices, self.steps, self.dtype)
        return _by_kernel(kernels, matrices, self.steps)
