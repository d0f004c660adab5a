"""Calibration batches for packing: training text only, drawn from the recipe's seed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from niblick.data.dataset import Dataset
    from niblick.recipe import Recipe

SEQUENCES, ROWS = 64, 8


def calibration_batches(recipe: Recipe, dataset: Dataset, *, sequences: int = SEQUENCES) -> Iterator[Tensor]:
    """(B, T) int64 batches of random training sequences, the same for the same recipe and data."""
    import numpy as np
    import torch

    total = dataset.token_count("train")
    length = min(recipe.training.sequence_length, total)
    starts = np.random.default_rng(recipe.seed).integers(0, total - length + 1, size=sequences)
    for i in range(0, sequences, ROWS):
        rows = dataset.rows("train", starts[i : i + ROWS].tolist(), length)
        yield torch.from_numpy(rows.astype(np.int64))
