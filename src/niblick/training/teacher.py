"""The teacher of self-distillation: the run's own average of an earlier step, and what it draws.

Guarantees: a draw is a function of the teacher's weights, the recipe's seed, the step and the row
of the global batch only: neither a resumed run nor several processes change it.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from niblick.model import LanguageModel
from niblick.model.kernels import Kernels, use_kernels
from niblick.optim import Layout
from niblick.recipe import Recipe
from niblick.runtime import World
from niblick.training.weights import Weights

_STREAM = 1  # of the seed and the step; dropout draws from the one without a number


class Teacher:
    """A model that reads flat weights and draws tokens (rows, T, draws) for batches."""

    def __init__(
        self,
        recipe: Recipe,
        flat: Tensor,
        *,
        world: World,
        device: str,
        dtype: torch.dtype,
        kernels: Kernels | None,
    ) -> None:
        self.recipe, self.world, self.device = recipe, world, device
        self.model = LanguageModel(recipe.model, seed=None).to(device).eval()
        layout = Layout(self.model.plan.parameters, recipe.training)
        Weights(self.model, layout, dtype=dtype, specs={}).refresh(flat)
        use_kernels(self.model, kernels)

    @torch.no_grad()
    def draw(self, inputs: Tensor, step: int) -> Tensor:
        """Tokens (rows, T, draws) int64 that may follow each of `inputs` (rows, T), this process's
        rows.
        """
        options, training = self.recipe.training.distillation, self.recipe.training
        rows, length = training.batch_tokens // training.sequence_length, inputs.shape[1]
        generator = np.random.default_rng([self.recipe.seed, step, _STREAM])
        drawn = generator.random((rows, length, options.draws), dtype=np.float32)
        points = torch.from_numpy(drawn[self.world.rank :: self.world.size]).to(self.device)
        return self.model.draw(self.model.hidden(inputs)[0], points, options.temperature)
