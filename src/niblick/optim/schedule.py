"""Where a run stands in its budget, and what follows: learning-rate multiplier, momentum, warmdown
left.

Everything is a function of the share of `training.duration` that is spent, so warmdown, late QAT
and averaging happen in any run, however short, slow or often resumed. Lengths given in steps are
turned into shares by the budget itself (steps, tokens) or by the measured step time (seconds), and
never exceed the budget.
"""

from __future__ import annotations

from dataclasses import dataclass

from niblick.recipe.schema import TrainingRecipe
from niblick.units import Duration


@dataclass(frozen=True, kw_only=True)
class Moment:
    """The start of one optimizer step: what is spent so far, and the measured seconds per step (0:
    unknown).
    """

    step: int
    tokens: int
    seconds: float
    step_seconds: float = 0.0


class Schedule:
    """The recipe's schedule; a budget in steps or tokens never looks at the clock."""

    def __init__(self, recipe: TrainingRecipe) -> None:
        self.recipe = recipe
        self.duration = Duration.parse(recipe.duration)

    def spent(self, moment: Moment) -> float:
        """Share of the budget that is used up; the run ends at 1 or more."""
        return self.duration.fraction(
            seconds=moment.seconds, steps=moment.step, tokens=moment.tokens
        )

    def is_last(self, moment: Moment) -> bool:
        """Whether the step that starts now uses up the budget (in seconds: is expected to)."""
        return self.spent(moment) + self._step_share(moment) >= 1

    def multiplier(self, moment: Moment) -> float:
        """Learning-rate multiplier: linear warm-up, one, then linear to `final` over the
        warmdown.
        """
        spent = min(self.spent(moment), 1.0)
        warmup = self._share(self.recipe.schedule.warmup, moment)
        if spent < warmup:
            step = self._step_share(moment) or warmup / 100  # before any step was measured
            return (spent + step) / (warmup + step)
        final = self.recipe.schedule.final
        return final + (1 - final) * min(1.0, self._left(spent, warmup, moment))

    def remaining(self, moment: Moment) -> float:
        """Share of the warmdown still ahead, 1 before it begins: what late QAT and SWA wait for.

        Equal to the multiplier where `final` is 0; without a warmdown the whole budget stands in
        for it.
        """
        spent = min(self.spent(moment), 1.0)
        warmup = self._share(self.recipe.schedule.warmup, moment)
        return min(1.0, self._left(spent, warmup, moment))

    def rounds(self, moment: Moment) -> bool:
        """Whether weights are rounded from this step on (late QAT); true for the last step at the
        latest.
        """
        qat = self.recipe.qat
        return qat.enabled and (self.remaining(moment) < qat.start or self.is_last(moment))

    def momentum(self, moment: Moment) -> float:
        """Muon's momentum, rising linearly from `momentum[0]` to `momentum[1]` over its warm-up."""
        low, high = self.recipe.muon.momentum
        length = self.recipe.muon.momentum_warmup
        if isinstance(length, str):
            share = moment.step / Duration.parse(length).amount
        else:
            share = self.spent(moment) / length if length else 1.0
        return low + (high - low) * min(share, 1.0)

    def _left(self, spent: float, warmup: float, moment: Moment) -> float:
        length = min(self._share(self.recipe.schedule.warmdown, moment), 1 - warmup) or 1.0
        return (1 - spent) / length

    def _share(self, length: str | float, moment: Moment) -> float:
        """A length as a share of the budget, at most 1."""
        if not isinstance(length, str):
            return length
        return min(1.0, Duration.parse(length).amount * self._step_share(moment))

    def _step_share(self, moment: Moment) -> float:
        """The share of the budget that one step takes."""
        return self.duration.fraction(
            seconds=moment.step_seconds, steps=1, tokens=self.recipe.batch_tokens
        )
