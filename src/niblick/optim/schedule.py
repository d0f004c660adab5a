"""Where a run stands in its budget, and what follows: learning-rate multiplier, momentum, rounding.

Everything is a function of the fraction of the budget that is spent, so warmdown, late QAT and
averaging happen in any run, however short, slow or often resumed. Lengths given in steps become
fractions by the budget itself (steps, tokens) or by the measured step time (seconds), and never
exceed the budget.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf

from niblick.recipe.schema import TrainingRecipe
from niblick.registry import Registry
from niblick.units import Duration


@dataclass(frozen=True, kw_only=True)
class TrainingPosition:
    """The start of one optimizer step: what is spent so far, and the measured seconds per step.

    `step_seconds` is 0 while it is unknown.
    """

    step: int
    tokens: int
    seconds: float
    step_seconds: float = 0.0


Shape = Callable[[float, float], float]
SCHEDULES: Registry[Shape] = Registry("learning-rate schedule")
"""By name: (fraction of the warmdown still ahead, `final`) -> multiplier, after the warm-up."""


@SCHEDULES.register("linear")
def linear(ahead: float, final: float) -> float:
    """One until the warmdown, then a straight line to `final` (systems.md sections 1-3)."""
    return final + (1 - final) * ahead


class Schedule:
    """The recipe's schedule; a budget in steps or tokens never looks at the clock.

    `reserve` seconds at the end of a budget in seconds are left to what follows the steps. With
    `text`, the number of tokens of the training text, the budget is the smaller of the duration and
    `max_passes` over them, and late QAT waits for runs of its `min_passes`.
    """

    def __init__(self, recipe: TrainingRecipe, reserve: float = 0.0, text: int = 0) -> None:
        self.recipe, self.reserve, self.text = recipe, reserve, text
        self.most = recipe.max_passes * text if recipe.max_passes else 0.0
        self.duration = Duration.parse(recipe.duration)
        if self.duration.unit == "seconds":
            kept = max(self.duration.amount - reserve, self.duration.amount / 2)
            self.duration = replace(self.duration, amount=kept)
        self._shape = SCHEDULES[recipe.schedule.kind]

    def spent(self, at: TrainingPosition) -> float:
        """Fraction of the budget that is used up; the run ends at 1 or more."""
        return self._share(at.seconds, at.step, at.tokens)

    def left_out(self, at: TrainingPosition, *, rounds: bool) -> list[str]:
        """What the numbers of passes kept a run from that ends here: time, and late QAT where it
        `rounds`. One sentence each.
        """
        said, most, least = [], self.recipe.max_passes, self.recipe.qat.min_passes
        share = self.duration.fraction(seconds=at.seconds, steps=at.step, tokens=at.tokens)
        if self.most and at.tokens >= self.most and share < 0.95:
            said.append(
                f"{most:g} passes over the text (training.max_passes) are done with {1 - share:.0%}"
                " of the duration left: more would only be learnt by heart"
            )
        if rounds and self.passes(at) < least:
            said.append(
                f"{self.passes(at):.1f} passes over the text: late QAT was left out, which pays"
                f" from {least:g} on (training.qat.min_passes)"
            )
        return said

    def passes(self, at: TrainingPosition) -> float:
        """How often the whole run will have passed over the text, as far as can be told by now."""
        share = self.spent(at) + self._step_fraction(at)
        if not self.text or not share:
            return inf
        return (at.tokens + self.recipe.batch_tokens) / share / self.text

    def is_last(self, at: TrainingPosition) -> bool:
        """Whether the step that starts now uses up the budget (in seconds: is expected to)."""
        return self.spent(at) + self._step_fraction(at) >= 1

    def fits(self, at: TrainingPosition, seconds: float) -> bool:
        """Whether so many seconds of other work still fit into a budget in seconds."""
        return self.duration.unit != "seconds" or at.seconds + seconds <= self.duration.amount

    def multiplier(self, at: TrainingPosition) -> float:
        """Learning-rate multiplier: linear warm-up, then the schedule's shape over the warmdown."""
        spent = min(self.spent(at), 1.0)
        length, step = self.recipe.schedule.warmup, self._step_fraction(at)
        warmup = self._fraction(length, at)
        if isinstance(length, str) and not step:  # in seconds, before any step was measured
            steps = Duration.parse(length).amount
            if at.step < steps:
                return (at.step + 1) / (steps + 1)
        if spent < warmup:
            step = step or warmup / 100
            return (spent + step) / (warmup + step)
        if self._fraction(self.recipe.schedule.warmdown, at) == 0:
            return 1.0
        return self._shape(self.remaining(at), self.recipe.schedule.final)

    def remaining(self, at: TrainingPosition) -> float:
        """Fraction of the warmdown still ahead, 1 before it begins: late QAT and SWA wait for it.

        Without a warmdown the whole budget stands in for it.
        """
        spent = min(self.spent(at), 1.0)
        warmup = self._fraction(self.recipe.schedule.warmup, at)
        length = min(self._fraction(self.recipe.schedule.warmdown, at), 1 - warmup) or 1.0
        return min(1.0, (1 - spent) / length)

    def rounds(self, at: TrainingPosition) -> bool:
        """Whether late QAT rounds from this step on; true for the last step at the latest, and
        never in a run of too few passes.
        """
        late = self.remaining(at) < self.recipe.qat.start or self.is_last(at)
        return late and self.passes(at) >= self.recipe.qat.min_passes

    def momentum(self, at: TrainingPosition) -> float:
        """Muon's momentum, rising linearly from `momentum[0]` to `momentum[1]` over its warm-up."""
        low, high = self.recipe.muon.momentum
        length = self.recipe.muon.momentum_warmup
        if isinstance(length, str):
            risen = at.step / Duration.parse(length).amount
        else:
            risen = self.spent(at) / length if length else 1.0
        return low + (high - low) * min(risen, 1.0)

    def _fraction(self, length: str | float, at: TrainingPosition) -> float:
        """A length as a fraction of the budget, at most 1."""
        if not isinstance(length, str):
            return length
        return min(1.0, Duration.parse(length).amount * self._step_fraction(at))

    def _step_fraction(self, at: TrainingPosition) -> float:
        """The fraction of the budget that one step takes."""
        return self._share(at.step_seconds, 1, self.recipe.batch_tokens)

    def _share(self, seconds: float, steps: int, tokens: int) -> float:
        share = self.duration.fraction(seconds=seconds, steps=steps, tokens=tokens)
        return max(share, tokens / self.most) if self.most else share
