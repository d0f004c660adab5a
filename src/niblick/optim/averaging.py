"""Averages of the weights over training: an exponential one with warm-up, one whose memory grows
with the run, or a stochastic one (SWA).

Each always holds something by the end of a run, however short: the first two start at the first
step, and SWA takes the last step's weights where it would have taken none.
"""

from __future__ import annotations

import torch
from torch import Tensor

from niblick.recipe.schema import AveragingRecipe


class Averager:
    """A running average of a flat weight buffer; `count` is how many samples it holds."""

    def __init__(self, recipe: AveragingRecipe, weights: Tensor) -> None:
        self.recipe, self._power = recipe, power_of(recipe.width)
        self.average = weights.clone()
        self.count = 0
        self.last_sample = -1

    @torch.no_grad()
    def update(self, weights: Tensor, *, step: int, remaining: float, last: bool) -> None:
        """After optimizer step `step` (from 1): `remaining` is the share of the warmdown still
        ahead.
        """
        if self.recipe.kind == "ema":
            self._mix(weights, 1 - self._decay(), step)
        elif self.recipe.kind == "power":
            share = 1 - (1 - 1 / (self.count + 1)) ** (self._power + 1)
            self._mix(weights, share, step)
        elif self._samples(step, remaining, last):
            self._mix(weights, 1 / (self.count + 1), step)

    def _decay(self) -> float:
        decay = self.recipe.decay
        return min(decay, (1 + self.count) / (10 + self.count)) if self.recipe.warmup else decay

    def _samples(self, step: int, remaining: float, last: bool) -> bool:
        if last and self.count == 0:
            return True
        return remaining < self.recipe.start and (
            self.count == 0 or step - self.last_sample >= self.recipe.every
        )

    def _mix(self, weights: Tensor, share: float, step: int) -> None:
        self.average.lerp_(weights, share)
        self.count += 1
        self.last_sample = step


def power_of(width: float) -> float:
    """The g of weights t^g on t in [0, 1] whose standard deviation is `width` (Karras et al. 2024,
    "Analyzing and improving the training dynamics of diffusion models", section 3.1).
    """
    low, high = 0.0, 1e4
    for _ in range(100):
        middle = (low + high) / 2
        deviation = ((middle + 1) / (middle + 2) ** 2 / (middle + 3)) ** 0.5
        low, high = (middle, high) if deviation > width else (low, middle)
    return low


def make_averager(recipe: AveragingRecipe, weights: Tensor) -> Averager | None:
    """The recipe's averager, started at the present weights; None for `kind = "none"`."""
    return None if recipe.kind == "none" else Averager(recipe, weights)
