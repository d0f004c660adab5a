"""Calibration: token batches that sensitivities and losses are measured on, and the time spent
reading them.

The caller hands in batches of *training* text; where there is none, the model writes its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from time import perf_counter

import torch
from torch import Tensor
from torch.nn import functional as F

from niblick.model import LanguageModel


@dataclass
class Calibration:
    """Batches of tokens, each (B, T) int64, drawn once; `seconds` is what using them took.

    `bytes_per_token` of the text turns nats per token into bits per byte; a target tax needs it.
    Measuring sensitivities stops after `limit` seconds; `sequences` is how many it has used.
    """

    batches: Iterable[Tensor]
    bytes_per_token: float | None = None
    limit: float | None = None
    seconds: float = 0.0
    sequences: int = 0
    _drawn: list[Tensor] = field(default_factory=list, repr=False)

    def __iter__(self) -> Iterator[Tensor]:
        """The batches, kept so that every pass sees the same ones."""
        if not self._drawn:
            started = perf_counter()
            self._drawn = list(self.batches)
            self.seconds += perf_counter() - started
        return iter(self._drawn)

    @property
    def planned(self) -> int:
        """How many sequences there are."""
        return sum(len(batch) for batch in self)


@torch.no_grad()
def mean_nll(model: LanguageModel, calibration: Calibration) -> float:
    """Mean negative log-likelihood per token in nats on the batches, first tokens aside; adds to
    the seconds.
    """
    batches = list(calibration)
    started = perf_counter()
    total, count = 0.0, 0
    for batch in batches:
        logits = model.logits(batch[:, :-1])
        total += float(
            F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum")
        )
        count += batch[:, 1:].numel()
    calibration.seconds += perf_counter() - started
    return total / max(count, 1)


@torch.no_grad()
def self_generated(
    model: LanguageModel, *, seed: int, sequences: int = 64, length: int = 256
) -> Iterator[Tensor]:
    """Text that the model writes itself at temperature 1, all sequences side by side from BOS: (8,
    T) batches.
    """
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.full((sequences, 1), model.recipe.bos_id, dtype=torch.int64)
    written, state = [tokens], None
    for _ in range(length - 1):
        logits, state = model(tokens, state)
        tokens = torch.multinomial(logits[:, -1].softmax(-1), 1, generator=generator)
        written.append(tokens)
    yield from torch.split(torch.cat(written, dim=1), 8)
