"""Calibration: token batches that sensitivities and losses are measured on, and the time it takes.

The batches are *training* text drawn from the recipe's seed; where there is none, the model writes
its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from time import perf_counter

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from niblick.data.dataset import Dataset
from niblick.model import LanguageModel
from niblick.plan import make_plan
from niblick.recipe import Recipe
from niblick.text.tokenizer import Tokenizer
from niblick.units import Duration

# What counts is how often a table's rows come up, so batches are large; of these many, the matrices
# need no more. Large models, which lose less, make do with fewer tokens.
BATCHES, LENGTH = 64, 512
_FEWEST, _MOST, _WORK = 1 << 14, 1 << 17, 1 << 39  # tokens; tokens times parameters
_TAX_TOKENS = 1 << 15  # that a loss is measured on
_AT_ONCE = 64  # sequences that a model writes


@dataclass
class Calibration:
    """Batches of tokens, each (B, T) int64; `seconds` is what using them took.

    `bytes_per_token` of the text turns nats per token into bits per byte; a target tax needs it.
    Measuring sensitivities stops after `limit` seconds; `sequences` is how many it has used.
    """

    batches: Sequence[Tensor]
    bytes_per_token: float | None = None
    limit: float | None = None
    seconds: float = 0.0
    sequences: int = 0

    @property
    def planned(self) -> int:
        """How many sequences there are."""
        return sum(len(batch) for batch in self.batches)


@torch.no_grad()
def mean_nll(model: LanguageModel, calibration: Calibration) -> float:
    """Mean negative log-likelihood in nats of some 32,768 tokens, first ones of a row aside; adds
    to the seconds.
    """
    started = perf_counter()
    total, count = 0.0, 0
    for batch in calibration.batches:
        if count >= _TAX_TOKENS:
            break
        tokens = batch.to(model.device)
        logits = model.logits(tokens[:, :-1])
        total += float(
            F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="sum")
        )
        count += batch[:, 1:].numel()
    calibration.seconds += perf_counter() - started
    return total / max(count, 1)


@torch.no_grad()
def self_generated(
    model: LanguageModel, *, seed: int, sequences: int = 256, length: int = 256
) -> Calibration:
    """Text that the model writes from BOS at temperature 1, in batches (4, T)."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.full((sequences, 1), model.recipe.bos_id, dtype=torch.int64)
    rounds = torch.split(first, _AT_ONCE)
    rows = torch.cat([_continued(model, each, length, generator) for each in rounds])
    return Calibration(torch.split(rows, 4))


def _continued(
    model: LanguageModel, tokens: Tensor, length: int, generator: torch.Generator
) -> Tensor:
    """(B, `length`): the first tokens (B, 1), and what the model writes after them."""
    written, state = [tokens], None
    for _ in range(length - 1):
        logits, state = model(tokens.to(model.device), state)
        tokens = torch.multinomial(logits[:, -1].softmax(-1).cpu(), 1, generator=generator)
        written.append(tokens)
    return torch.cat(written, dim=1)


def make_calibration(recipe: Recipe, dataset: Dataset) -> Calibration:
    """Random training sequences in batches (B, T + 1) int64, the same for the same recipe and data.

    They have 131,072 tokens, for models of more than four million parameters fewer, but at least
    16,384.
    """
    parameters = max(make_plan(recipe.model).parameter_count, 1)
    each = min(_MOST, max(_FEWEST, _WORK // parameters)) // BATCHES
    total = dataset.token_count("train")
    length = min(LENGTH, recipe.training.sequence_length, each, total - 1)
    rows_each = each // length
    generator = np.random.default_rng(recipe.seed)
    starts = generator.integers(0, total - length, size=BATCHES * rows_each)
    rows = dataset.rows("train", starts.tolist(), length + 1).astype(np.int64)
    batches = torch.split(torch.from_numpy(rows), rows_each)
    return Calibration(batches, bytes_per_token=_bytes_per_token(dataset.tokenizer, batches))


def left_of_budget(recipe: Recipe, calibration: Calibration, spent: float) -> Calibration:
    """The calibration with what is left of a budget in seconds as its limit."""
    duration = Duration.parse(recipe.training.duration)
    limit = max(duration.amount - spent, 0.0) if duration.unit == "seconds" else None
    return replace(calibration, seconds=0.0, limit=limit)


def _bytes_per_token(tokenizer: Tokenizer, batches: Sequence[Tensor]) -> float:
    rows = [row for batch in batches for row in batch.numpy()]
    total = sum(int(tokenizer.byte_table.count(row[1:], row[:-1]).sum()) for row in rows)
    return total / max(sum(len(row) - 1 for row in rows), 1)
