"""What the logs say of the evaluations behind a submission's own figure: of how many tokens they
are, and how many bytes a token each of their figures counts.

A loss in nats a token and a figure in bits per byte of the same tokens give the bytes a token that
the one was divided by to make the other. The public split has a fixed number of bytes, so that the
number is known as soon as the tokens are.
"""

from __future__ import annotations

import math
import re
import statistics
from dataclasses import dataclass

from niblick.audit.rules.case import Case
from niblick.audit.rules.claimed import same

TEXT_BYTES = (151_080_891, 155_773_952)
"""Bytes of the public validation text (its first 50,000 documents), now and as first published."""
_TOKENS = re.compile(
    r"\bval(?!\w*batch)\w*(?:(?!train|batch|seen)[^\n]){0,160}?tokens\s*[:=]\s*([\d,_]{4,})"
)
_FIGURE = re.compile(r"(?:loss|bpb)\s*[:=]\s*\d")
_PAIR = re.compile(r"val_loss\s*[:=]\s*(\d+\.\d{4,})[\s,;|]+val_bpb\s*[:=]\s*(\d+\.\d{4,})")
_EXACT = 3e-4  # of a ratio: what windows at the ends of a split come to
_DROPPED = 2.5e-3  # of a ratio: what leaving out the first token of each document comes to
_SQUEEZED = 5e-3  # of the text: what a tokenizer that joins spaces does not see
_MOST_BYTES_PER_TOKEN = 5.0
_FEWEST = 3


@dataclass(frozen=True)
class Ratio:
    """The bytes a token that one logged figure counts, the share of it that rounding hides, the
    figure itself, and whether it is the claimed one.
    """

    value: float
    error: float
    figure: float
    claimed: bool


@dataclass(frozen=True)
class Logged:
    """One log: how many tokens its validation stream has (None: not said), and its figures."""

    tokens: int | None
    ratios: tuple[Ratio, ...]

    @property
    def least(self) -> float:
        """The bytes a token that all its figures, outliers aside, count at least."""
        values = [r.value for r in self.ratios]
        return min(min(values), statistics.median(values))

    @property
    def excess(self) -> float:
        """The bytes that every figure of the log is divided by at least, where that is more than
        the text has; nought where it is not, or not known.
        """
        if self.tokens is None or len(self.ratios) < _FEWEST:
            return 0.0
        total = self.tokens * self.least
        over = total > (1 + 2e-3) * TEXT_BYTES[0] and not _fits(total, _EXACT)
        return total if over else 0.0

    @property
    def part(self) -> bool:
        """Whether the stream has fewer tokens than the split under any vocabulary, and the claimed
        figure is of it.
        """
        most = max(_MOST_BYTES_PER_TOKEN, *(r.value for r in self.ratios))
        claimed = any(r.claimed for r in self.ratios)
        return bool(claimed and self.tokens and self.tokens * most < 0.9 * TEXT_BYTES[0])

    @property
    def odd(self) -> float:
        """By what share the claimed figure counts more (or fewer) bytes a token than the whole
        text has, or the log's other figures do; nought where it does not.
        """
        mine = [r for r in self.ratios if r.claimed]
        others = [r.value for r in self.ratios if not r.claimed]
        if not mine or self.part or self.excess:
            return 0.0
        own = min(mine, key=lambda r: r.error)
        slack = _EXACT + own.error
        share = own.value / statistics.median(others) - 1 if others else 0.0
        steady = abs(share) <= slack
        if self.tokens is not None:
            share = min((self.tokens * own.value / t - 1 for t in TEXT_BYTES), key=abs)
            slack = _SQUEEZED if steady else slack
        elif len(others) < _FEWEST:
            return 0.0
        return 0.0 if -slack <= share <= _DROPPED else share


def logged(case: Case) -> list[Logged]:
    """The logs that show the claimed figure, else all that show figures."""
    stated = case.claimed.stated
    out = [told for lines in case.logs if (told := _told(lines, stated))]
    return [each for each in out if any(r.claimed for r in each.ratios)] or out


def of_claim(case: Case, told: list[Logged]) -> bool:
    """Whether logs are of the claimed figure: they show it, or it is the mean of the last figures
    of several or of their best, or none is stated.
    """
    figures = [[r.figure for r in log.ratios] for log in told]
    ends = zip(*((f[-1], min(f)) for f in figures), strict=True)
    means = [f"{statistics.mean(end):.6f}" for end in ends]
    claimed = any(r.claimed for log in told for r in log.ratios)
    stated = case.claimed.stated
    return claimed or not stated or any(same(m, claim) for m in means for claim in stated)


def mixed(case: Case) -> bool:
    """Whether a log shows a claimed figure that is smaller than its own loss over the bytes of the
    text comes to: something else was mixed into it.
    """
    return any(log.odd > 0.01 for log in logged(case))


def _told(lines: list[str], stated: tuple[str, ...]) -> Logged | None:
    ratios = []
    for m in filter(None, map(_PAIR.search, lines)):
        loss, figure = float(m[1]), float(m[2])
        if loss > 0 and figure > 0:
            ratios.append(
                Ratio(
                    loss / math.log(2) / figure,
                    _rounded(m[1]) / loss + _rounded(m[2]) / figure,
                    figure,
                    any(same(m[2], claim) for claim in stated),
                )
            )
    if not ratios:
        return None
    found = (_TOKENS.search(line) for line in lines if not _FIGURE.search(line))
    counts = {int(re.sub(r"[,_]", "", m[1])) for m in found if m}
    fitting = [n for n in counts if any(_fits(n * r.value, _EXACT + r.error) for r in ratios)]
    return Logged(max(fitting or counts, default=None), tuple(ratios))


def _rounded(text: str) -> float:
    """By how much a number that is written so may be off."""
    return 0.51 * 10.0 ** -len(text.partition(".")[2])


def _fits(total: float, slack: float) -> bool:
    return any(abs(total / text - 1) <= slack for text in TEXT_BYTES)
