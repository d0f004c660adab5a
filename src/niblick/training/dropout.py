"""Dropout of table rows: at which positions of a batch a table is left out.

Guarantees: the draw is a function of the recipe's seed, the step and the row of the global batch
only: neither a resumed run nor several processes change it.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from niblick.components import BEFORE
from niblick.plan import member_prefixes
from niblick.recipe import Recipe
from niblick.runtime import World
from niblick.training.device import send


class Dropout:
    """Draws the factors (rows, T, 1) of every table that the recipe drops rows of."""

    def __init__(self, recipe: Recipe, world: World, device: str) -> None:
        training, model = recipe.training, recipe.model
        tables = {part.table for part in BEFORE if part.used(model)}
        rates = training.dropout.model_dump()
        own = {k: rate for k, rate in rates.items() if rate and k in tables}
        prefixes = member_prefixes(model.members)
        self.rates = {prefix + k: rate for prefix in prefixes for k, rate in own.items()}
        self._shape = training.batch_tokens // training.sequence_length, training.sequence_length, 1
        self._seed, self._world, self._device = recipe.seed, world, device

    def draw(self, step: int) -> dict[str, Tensor]:
        """0 where a row is dropped, else 1 / (1 - rate), by table, for this process's rows; each
        member of an ensemble draws its own.
        """
        generator = np.random.default_rng([self._seed, step])
        return {name: self._factor(generator, rate) for name, rate in self.rates.items()}

    def _factor(self, generator: np.random.Generator, rate: float) -> Tensor:
        drawn = generator.random(self._shape, dtype=np.float32)
        kept = drawn[self._world.rank :: self._world.size] >= rate
        return send(torch.from_numpy(kept), self._device).float() / (1 - rate)
