"""Muon: momentum whose matrices are orthogonalised by Newton-Schulz, stacks of equal shape at once.

The update of an (out, in) matrix is scaled by max(1, out/in)^0.5; weight decay is decoupled
(systems.md section 1). Matrix products run in bfloat16 where the device multiplies it in hardware,
else in float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from niblick.model.graphs import one_graph
from niblick.model.kernels.library import DTYPES
from niblick.optim.base import OPTIMIZERS, ParameterGroup, Update
from niblick.optim.sharding import Shards, Share, Waiting
from niblick.recipe.schema import TrainingRecipe

if TYPE_CHECKING:
    from niblick.model.kernels import Kernels

SIDE = 32  # the kernel takes sides that are multiples of it
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # the quintic's, published with Muon


def newton_schulz(gradients: Tensor, steps: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Approximately nearest semi-orthogonal matrices of (N, rows, columns), each by itself.

    Products run in `dtype`. Singular values end between about 0.7 and 1.2, as with the published
    quintic.
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


def balanced(updates: Tensor, second: Tensor, beta: float, step: int) -> Tensor:
    """Updates (N, rows, columns) whose neurons move alike, each matrix as far as before, float32.

    A neuron is a row, of wide matrices a column; its updates are divided by the root of their mean
    square, of which `second` (N * the longer side,) keeps the average over steps, with decay `beta`
    (NorMuon, Li et al. 2025, arXiv 2510.05491).
    """
    across = 2 if updates.shape[1] >= updates.shape[2] else 1
    norms = torch.linalg.vector_norm(updates, dim=across, keepdim=True, dtype=torch.float32)
    squares = norms.square() / updates.shape[across]
    average = second.view_as(squares)
    average.lerp_(squares, 1 - beta)
    factors = ((average / (1 - beta**step)).sqrt() + 1e-8).reciprocal()
    before = squares.sum(dim=(1, 2), keepdim=True)
    after = (squares * factors.square()).sum(dim=(1, 2), keepdim=True)
    out: Tensor = updates * (factors * (before / (after + 1e-30)).sqrt())
    return out


@OPTIMIZERS.register("muon")
class Muon:
    """Momentum and orthogonalised updates for the matrices of one group.

    Several processes share the matrices: each keeps momentum of its own and orthogonalises it, and
    the next stack is computed while the updates of the one before are gathered. All apply the same
    bits.
    """

    def __init__(self, group: ParameterGroup, training: TrainingRecipe) -> None:
        self.recipe, self.group, self.lr = training.muon, group, training.muon.lr
        self.momentum = torch.zeros(group.size, device=group.device)
        self.shards = Shards(group.stacks, group.processes)
        sides = [stack.count * max(stack.rows, stack.columns) for stack in group.stacks]
        self.neurons = torch.zeros(sum(sides), device=group.device)
        self._seconds = torch.split(self.neurons, sides)
        self._kernels: Kernels | None = None
        self._newton_schulz = newton_schulz

    def state(self) -> dict[str, Tensor]:
        """The momentum, and with `neuron_beta` the mean square of every neuron's updates."""
        found = {"momentum": self.momentum}
        return found if self.recipe.neuron_beta is None else found | {"neurons": self.neurons}

    def use(self, kernels: Kernels | None) -> None:
        """See `Optimizer.use`."""
        self._kernels = kernels

    def compile(self, backend: str) -> None:
        """Fuse what lies between the products, where matrices are on an accelerator."""
        self._newton_schulz = one_graph(newton_schulz, backend)

    def complete(self) -> None:
        """Have all of the momentum in every process, as a checkpoint needs it."""
        self.shards.complete(self.momentum)

    @torch.no_grad()
    def update(self, weights: Tensor, gradients: Tensor, at: Update) -> None:
        """See `Optimizer.update`."""
        recipe, lr = self.recipe, self.lr * at.multiplier
        direction = None
        if not self.shards.divided:
            direction = self._direction(gradients, self.momentum, at)
        begun = [self._begin(share, gradients, direction, at) for share in self.shards.shares]
        keep = 1 - lr * recipe.weight_decay
        parts = zip(self.shards.shares, begun, self._seconds, strict=True)
        for share, (updates, wait), second in parts:
            stack = share.stack
            scale = max(1.0, stack.rows / stack.columns) ** 0.5
            rate = lr * scale * (keep if recipe.decay_after_update else 1.0)
            wait()
            updates = updates.contiguous()
            if (beta := recipe.neuron_beta) is not None:
                updates = balanced(updates, second, beta, at.step)
            self._descend(stack.view(weights), updates, keep, rate)

    def _begin(
        self, share: Share, gradients: Tensor, direction: Tensor | None, at: Update
    ) -> tuple[Tensor, Waiting]:
        """Updates of a whole stack, and what waits for those of other processes."""
        if direction is not None:
            own = share.view(direction)
        else:
            slopes, momentum = (share.view(t).view(-1) for t in (gradients, self.momentum))
            own = self._direction(slopes, momentum, at).view(share.count, *share.size)
        if share.count:
            own = self._nearest(own)
        return self.shards.gather(share, own.to(self.group.dtype))

    def _direction(self, gradients: Tensor, momentum: Tensor, at: Update) -> Tensor:
        """What is orthogonalised: the momentum, or with Nesterov the gradient moved towards it.

        `momentum_form = "sum"` is the published buf = beta * buf + g; "mean" is lerp(g, 1 - beta),
        which gives the same direction only while beta is constant (systems.md section 7).
        """
        beta, nesterov = at.momentum, self.recipe.nesterov
        if self.recipe.momentum_form == "sum":
            momentum.mul_(beta).add_(gradients, alpha=at.grad_scale)
            return (
                gradients.mul_(at.grad_scale).add_(momentum, alpha=beta) if nesterov else momentum
            )
        if self._kernels is not None:
            count = gradients.numel()
            self._kernels(
                "momentum",
                gradients.dtype,
                gradients,
                at.grad_scale,
                momentum,
                beta,
                nesterov,
                count,
            )
            return gradients
        momentum.lerp_(gradients.mul_(at.grad_scale) if at.grad_scale != 1 else gradients, 1 - beta)
        return gradients.lerp_(momentum, beta) if nesterov else momentum

    def _descend(self, weights: Tensor, updates: Tensor, keep: float, rate: float) -> None:
        if self._kernels is not None and updates.dtype in DTYPES:
            self._kernels("descend", updates.dtype, weights, updates, keep, rate, weights.numel())
        else:
            weights.mul_(keep).sub_(updates, alpha=rate)

    def _nearest(self, matrices: Tensor) -> Tensor:
        kernels, steps = self._kernels, self.recipe.newton_schulz_steps
        whole = matrices.shape[1] % SIDE == 0 and matrices.shape[2] % SIDE == 0
        dtype = self.group.dtype
        if kernels is None or dtype not in kernels.multiplies or not whole:
            return self._newton_schulz(matrices, steps, dtype)
        out = torch.empty_like(matrices, dtype=dtype)
        kernels("newton", out.dtype, matrices, out, *COEFFICIENTS, steps, *matrices.shape)
        return out
