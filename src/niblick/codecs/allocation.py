"""Finding the one number that trades bytes for loss: fill a byte budget from below, or meet a loss.

It is the same for all tensors: the grids already hold what each tensor, row and column is worth, so
a byte buys as much everywhere, and the search is over a single delta.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import exp, log, sqrt
from typing import Any

from niblick.codecs.quantized import Tensors
from niblick.codecs.rounder import Candidate, Rounder
from niblick.codecs.symbols import Tables

FILL = 0.9992  # Aim for this fraction of a budget: within 0.1 % of it, from below.
_TOLERANCE = 0.9990
_GRAIN = 16  # The stream grows in words, so tiny budgets cannot be met to the byte.
_NEAR = 0.9  # A measured loss this close below its target is good enough.
_ROUNDS = 12

Size = Callable[[Candidate], tuple[int, Tables]]


@dataclass
class _Search:
    """Points (log delta, bytes) tried so far; the first two teach the prices of later rounding."""

    rounder: Rounder
    size: Size
    tried: list[tuple[float, int]] = field(default_factory=list)

    def attempt(self, delta: float) -> tuple[int, Candidate]:
        """Round and code at `delta`."""
        candidate = self.rounder.round(delta)
        found, tables = self.size(candidate)
        if len(self.tried) < 2:
            self.rounder.tables = tables
        self.tried.append((log(candidate.delta), found))
        return found, candidate


def guess(rounder: Rounder, budget: int) -> float:
    """A delta whose closed-form bits fill `budget` bytes."""
    low, high = rounder.smallest_delta(), rounder.largest_delta()
    for _ in range(40):
        middle = sqrt(low * high)
        if rounder.bits(middle) > 8 * budget:
            low = middle
        else:
            high = middle
    return high


def fill_budget(rounder: Rounder, budget: int, size: Size) -> tuple[Candidate, dict[str, Any]]:
    """The candidate that comes closest to `budget` bytes from below, and what was chosen.

    Where even the smallest file is larger, or the largest smaller, that one is given and the choice
    says so.
    """
    search, best = _Search(rounder, size), None
    lowest, highest = rounder.smallest_delta(), rounder.largest_delta()
    delta = min(max(guess(rounder, budget), lowest), highest)
    for _ in range(_ROUNDS):
        found, candidate = search.attempt(delta)
        if found <= budget and (best is None or found > best[0]):
            best = (found, candidate)
        fits = min(_TOLERANCE * budget, budget - _GRAIN) <= found <= budget
        if fits or (found <= budget and delta <= lowest) or (found > budget and delta >= highest):
            break
        delta = min(max(_next(search.tried, FILL * budget, rounder), lowest), highest)
    used, candidate = best or search.attempt(highest)
    limit = (
        "smallest" if used > budget else "largest" if candidate.delta <= lowest * 1.0001 else "none"
    )
    return candidate, {
        "aim": "budget",
        "budget": budget,
        "limit": limit,
        "attempts": len(search.tried),
    }


def _next(tried: list[tuple[float, int]], aim: float, rounder: Rounder) -> float:
    """log delta between the tightest bracket, else by the closed form's bytes per log delta."""
    above = [point for point in tried[1:] or tried if point[1] > aim]
    below = [point for point in tried[1:] or tried if point[1] <= aim]
    if above and below:
        one, two = max(above), min(below)
        way = (one[1] - aim) / max(one[1] - two[1], 1)
        return exp(one[0] + min(max(way, 0.03), 0.97) * (two[0] - one[0]))
    x, found = tried[-1]
    change = (rounder.bits(exp(x) * 1.02) - rounder.bits(exp(x))) / 8 / log(1.02)
    move = (aim - found) / min(change, -1.0)
    return exp(x + min(max(move * 1.02, -2.0), 2.0))


def meet_tax(
    rounder: Rounder, tax: Callable[[Tensors], float], target: float, budget: int | None, size: Size
) -> tuple[Candidate, dict[str, Any]]:
    """The smallest candidate of at most `target` bits per byte measured tax that fits `budget`."""
    search = _Search(rounder, size)
    lowest, highest = rounder.smallest_delta(), rounder.largest_delta()
    low, high = lowest, highest
    delta = guess(rounder, sum(p.size for p in rounder.parameters) * 3 // 8)
    best: tuple[int, float, Candidate] | None = None
    for _ in range(_ROUNDS):
        found, candidate = search.attempt(delta)
        measured = tax(candidate.tensors)
        if measured <= target:
            low = max(low, delta)
            if best is None or found < best[0]:
                best = (found, measured, candidate)
        else:
            high = min(high, delta)
        if _NEAR * target <= measured <= target or high / low < 1.01:
            break
        # The loss grows like the square of the step.
        delta *= min(max(sqrt((1 + _NEAR) / 2 * target / max(measured, 1e-9)), 0.4), 2.5)
        if not low < delta < high:
            delta = sqrt(low * high)
    choice: dict[str, Any] = {"aim": "tax", "target": target, "attempts": len(search.tried)}
    if best is None:
        candidate = rounder.round(lowest)
        return candidate, choice | {
            "limit": "largest",
            "measured": round(tax(candidate.tensors), 6),
        }
    if budget is not None and best[0] > budget:
        return fill_budget(rounder, budget, size)
    return best[2], choice | {"limit": "none", "measured": round(best[1], 6)}
