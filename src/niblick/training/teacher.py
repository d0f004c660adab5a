"""The teacher of self-distillation: the run's own average of an earlier step, and what it draws.

Guarantees: a draw is a function of the teacher's weights, the recipe's seed, the step and the row
of the global batch only: neither a resumed run nor several processes change it.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor

from niblick.model import LanguageModel
from niblick.model.kernels import Kernels, use_kernels
from niblick.optim import Layout
from niblick.recipe import Recipe
from niblick.runtime import World
from niblick.training.state import RunState
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


class Teaching:
    """The teachers of a run, one after the other; a resumed run takes up the one it had."""

    def __init__(self, state: RunState, world: World, device: str, kernels: Kernels | None) -> None:
        self._state = state
        self._teacher: Teacher | None = None
        self._make = partial(
            Teacher,
            state.recipe,
            world=world,
            device=device,
            dtype=torch.bfloat16 if state.precision == "bf16" else torch.float32,
            kernels=kernels,
        )

    def renew(self, number: int) -> None:
        """Make what the run would export now its teacher, where it has had fewer than `number`."""
        state = self._state
        if number > state.teachers:
            state.teachers, state.taught_by = number, state.exportable.clone()
            self._teacher = None
        if state.taught_by is not None and self._teacher is None:
            self._teacher = self._make(state.taught_by)

    def draw(self, inputs: Tensor) -> dict[str, Tensor]:
        """What the teacher draws for a batch, as "taught"; nothing where there is none."""
        if self._teacher is None:
            return {}
        return {"taught": self._teacher.draw(inputs, self._state.step)}
