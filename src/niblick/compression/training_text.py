"""Calibration batches for packing: training text only, drawn from the recipe's seed."""

from __future__ import annotations

from dataclasses import replace
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from niblick.compression.calibration import Calibration
from niblick.compression.sensitivity import measure
from niblick.data.dataset import Dataset
from niblick.model import LanguageModel
from niblick.plan import make_plan
from niblick.recipe import Recipe
from niblick.text.tokenizer import Tokenizer
from niblick.units import Duration

# Many short sequences: each is one sample of the Fisher information, and the number of samples is
# what counts. Large models, which lose less, make do with fewer.
SEQUENCES, FEWEST, LENGTH, ROWS = 256, 96, 128, 8
_WORK = 1 << 30  # parameters times sequences
_MARGIN = 1.25  # of the time that measuring is expected to take


def make_calibration(
    recipe: Recipe, dataset: Dataset, *, sequences: int | None = None
) -> Calibration:
    """Random training sequences as (B, T) int64 batches, the same for the same recipe and data.

    By default 256, for models of more than four million parameters fewer, but at least 96.
    """
    if sequences is None:
        sequences = min(
            SEQUENCES, max(FEWEST, _WORK // max(make_plan(recipe.model).parameter_count, 1))
        )
    total = dataset.token_count("train")
    length = min(LENGTH, recipe.training.sequence_length, total)
    starts = np.random.default_rng(recipe.seed).integers(0, total - length + 1, size=sequences)
    rows = dataset.rows("train", starts.tolist(), length).astype(np.int64)
    batches = [torch.from_numpy(rows[i : i + ROWS]) for i in range(0, sequences, ROWS)]
    return Calibration(batches, bytes_per_token=_bytes_per_token(dataset.tokenizer, batches))


def estimate_seconds(recipe: Recipe, calibration: Calibration) -> float:
    """Seconds of a budget in seconds to keep for measuring sensitivities; 0 for other budgets.

    Measured on two sequences with an untrained model; that time is added to the calibration's.
    """
    if Duration.parse(recipe.training.duration).unit != "seconds":
        return 0.0
    model, each = LanguageModel(recipe.model, seed=recipe.seed), 0.0
    started = perf_counter()
    for row in next(iter(calibration))[:2]:  # the first time is longer than the others
        began = perf_counter()
        measure(model, Calibration([row[None]]), seed=recipe.seed)
        each = perf_counter() - began
    calibration.seconds += perf_counter() - started
    return _MARGIN * each * calibration.planned


def left_of_budget(recipe: Recipe, calibration: Calibration, spent: float) -> Calibration:
    """The calibration with what is left of a budget in seconds as its limit."""
    duration = Duration.parse(recipe.training.duration)
    limit = duration.amount - spent if duration.unit == "seconds" else None
    return replace(calibration, seconds=0.0, limit=None if limit is None else max(limit, 0.0))


def _bytes_per_token(tokenizer: Tokenizer, batches: list[Tensor]) -> float:
    rows = [row for batch in batches for row in batch.numpy()]
    total = sum(int(tokenizer.byte_table.count(row[1:], row[:-1]).sum()) for row in rows)
    return total / max(sum(len(row) - 1 for row in rows), 1)
