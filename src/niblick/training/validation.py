"""Read-only validation during training: bits per byte of a fixed slice, in chunks of the training
length.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from niblick.data.dataset import Dataset
from niblick.model import LanguageModel
from niblick.objective import token_nll
from niblick.recipe import Recipe
from niblick.runtime import World
from niblick.training.distributed import sum_over
from niblick.units import LN2


class Validator:
    """The first tokens of a validation split, cut into rows of the training length."""

    def __init__(self, recipe: Recipe, dataset: Dataset, *, world: World, device: str) -> None:
        length, wanted = recipe.training.sequence_length, recipe.training.validation.tokens
        tokens = np.asarray(dataset.tokens("validation")[: wanted + 1]).astype(np.int64)
        length = max(1, min(length, len(tokens) - 1))
        rows = (len(tokens) - 1) // length
        inputs = tokens[: rows * length].reshape(rows, length)
        targets = tokens[1 : rows * length + 1].reshape(rows, length)
        self.bytes = int(dataset.tokenizer.byte_table.count(targets, inputs).sum())
        self.tokens = int(targets.size)
        self._inputs, self._targets = torch.from_numpy(inputs), torch.from_numpy(targets)
        self._batch = max(1, 65536 // length)
        self._world, self._device = world, device

    def limit(self, rows: int) -> None:
        """Passes of at most so many rows of the training length."""
        self._batch = max(1, min(self._batch, rows))

    @torch.no_grad()
    def measure(self, model: LanguageModel) -> tuple[float, float]:
        """Nats per token and bits per byte of the slice under the model's present weights; the
        model is left as it was.
        """
        nats = torch.zeros(1, dtype=torch.float64, device=self._device)
        rows = slice(self._world.rank, None, self._world.size)
        for inputs, targets in zip(
            self._parts(self._inputs[rows]), self._parts(self._targets[rows]), strict=True
        ):
            nats += token_nll(model.logits(inputs), targets).double().sum()
        sum_over(self._world, nats)
        total = float(nats)
        return total / max(1, self.tokens), total / LN2 / max(1, self.bytes)

    def _parts(self, rows: Tensor) -> list[Tensor]:
        return (
            [part.to(self._device) for part in torch.split(rows, self._batch)] if len(rows) else []
        )


def make_validator(
    recipe: Recipe, dataset: Dataset, *, world: World, device: str
) -> Validator | None:
    """A validator, or None where the recipe asks for none or the dataset has no validation
    split.
    """
    if recipe.training.validation.every == 0 or not dataset.files.get("validation"):
        return None
    return Validator(recipe, dataset, world=world, device=device)
