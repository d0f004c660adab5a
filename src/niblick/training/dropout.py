"""Dropout of table rows: at which positions of a batch a table is left out.

Guarantees: the draw is a function of the recipe's seed, the step and the row of the global batch
only: neither a resumed run nor several processes change it.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from niblick.recipe import Recipe
from niblick.runtime import World


class Dropout:
    """Draws the factors (rows, T, 1) of every table that the recipe drops rows of."""

    def __init__(self, recipe: Recipe, world: World, device: str) -> None:
        training, model = recipe.training, recipe.model
        used = {
            "token": True,
            "bigram": model.bigram.enabled,
            "value_embedding": model.value_embedding.enabled,
        }
        self.shares = {k: v for k, v in training.dropout.model_dump().items() if v and used[k]}
        self._shape = training.batch_tokens // training.sequence_length, training.sequence_length, 1
        self._seed, self._world, self._device = recipe.seed, world, device

    def draw(self, step: int) -> dict[str, Tensor]:
        """0 where a row is dropped, else 1 / (1 - share): by table, for this process's rows of step
        `step`.
        """
        generator = np.random.default_rng([self._seed, step])
        return {name: self._factor(generator, share) for name, share in self.shares.items()}

    def _factor(self, generator: np.random.Generator, share: float) -> Tensor:
        kept = (
            generator.random(self._shape, dtype=np.float32)[self._world.rank :: self._world.size]
            >= share
        )
        return (torch.from_numpy(kept).float() / (1 - share)).to(self._device)
