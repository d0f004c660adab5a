"""Positions of the validation split that no window scores: between windows, or from some place on.

Of several processes one is followed, whose share says nothing of what others score or learn; so
the program is followed once more as one process runs it, where the first time gives a reason to.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np

from niblick.audit.flow.boxes import BOS, STREAM, stream
from niblick.audit.flow.objects import FigureEvent, Trace
from niblick.audit.rules.case import Case
from niblick.audit.rules.registry import rule
from niblick.audit.types import Finding, Severity

_SHORTEST, _SHARE = 8, 0.02  # a gap, in positions and of what is scored after it
_WHOLE = 0.7  # of the split, at least, where the last windows are left out
_LAST = 16  # figures that are looked at, from the end
_TOKENS = np.asarray(stream().val)


@rule("left-out")
def check(case: Case) -> list[Finding]:
    """A breach where windows that follow each other leave out what lies between them, or the last
    of them ends long before the split does.
    """
    if case.alone is None:
        return []
    alone = replace(case, trace=case.alone, alone=None)
    figure, scores = _counted(alone)
    own = _counted(case)[1]
    if figure is None or not own:
        return []
    gaps, end = _gaps(alone.trace, scores), _end(alone.trace, scores)
    short = _end(case.trace, own) < _most(1 if case.alone is case.trace else 2)
    if any(_gaps(case.trace, own)) and 2 * sum(map(bool, gaps)) > len(gaps):
        what = f"between windows that follow each other {max(gaps):,} tokens are left out"
    elif short and end < _most(1) and _sure(alone.trace, scores):
        what = f"what is scored ends after {100 * end // STREAM} % of it"
    else:
        return []
    return [
        case.finding(
            "part-of-split",
            Severity.BREACH if figure.certain else Severity.WARNING,
            f"{figure.where.function} prints a figure of a part of the validation split: {what}.",
            verdict="flag_other",
            pointer="limits",
            where=figure.where,
            cure="Score every token of the validation split once.",
        )
    ]


def tells_more(trace: Trace) -> bool:
    """Whether following a run as one process makes it may show what others learn or leave out."""
    if any(update.positions for update in trace.updates):
        return True
    figures = list(dict.fromkeys(f.scores for f in trace.figures if f.named))[-_LAST:]
    return any(_end(trace, f) < _most(2) or any(_gaps(trace, f)) for f in figures)


def _counted(case: Case) -> tuple[FigureEvent | None, frozenset[int]]:
    """The last figure with the scores that count: those of the claimed figures where logs tell
    these, else of all that are printed by a name, of which training reports some of a part.
    """
    claimed = case.claimed.scores
    figures = [f for f in case.trace.figures if f.scores]
    if not figures or not (claimed or figures[-1].named):
        return None, frozenset()
    named = [f for f in figures if f.named and (f.scores & claimed or not claimed)]
    scores = claimed.union(*(f.scores for f in named))
    return (named[-1], scores) if named else (None, scores)


def _most(processes: int) -> float:
    """Where what is scored ends at least, of a run of so many processes."""
    return _WHOLE * STREAM / processes


def _rows(trace: Trace, scores: frozenset[int]) -> list[tuple[int, int]]:
    """(number, positions) of each sum of these scores that went into a figure."""
    out = []
    for number in sorted(trace.summed):
        row = 0
        for score, kept in trace.sums[number].items():
            row |= kept if score in scores else 0
        out += [(number, row)] if row else []
    return out


def _end(trace: Trace, scores: frozenset[int]) -> int:
    """Where the last position that is scored lies; the end of the split where that is not known, as
    of documents that are scored one by one.
    """
    rows = _rows(trace, scores)
    numbers = [number for number, _ in rows]
    followed = rows and not trace.jumps.isdisjoint(range(numbers[0] + 1, numbers[-1] + 1))
    documents = 4 * sum(_begins(row) for _, row in rows[1:]) > len(rows)
    lost = documents or not trace.vague.isdisjoint(numbers)
    return _whole(rows).bit_length() if followed and not lost else STREAM


def _begins(row: int) -> bool:
    """Whether positions begin with a document."""
    low = (row & -row).bit_length() - 1
    return BOS in {int(_TOKENS[max(low - 1, 0)]), int(_TOKENS[min(low, STREAM - 1)])}


def _whole(rows: list[tuple[int, int]]) -> int:
    whole = 0
    for _, row in rows:
        whole |= row
    return whole


def _gaps(trace: Trace, scores: frozenset[int]) -> list[int]:
    """How many positions lie between each two sums that follow each other, that no sum holds."""
    rows = _rows(trace, scores)
    whole = _whole(rows)
    pairs = [
        (a, b)
        for (before, a), (number, b) in pairwise(rows)
        if trace.jumps.isdisjoint(range(before + 1, number + 1))
    ]
    return [_gap(a, b, whole) for a, b in pairs if b.bit_length() > a.bit_length()]


def _gap(before: int, after: int, whole: int) -> int:
    """The positions between two sums; none where they are few, or where documents begin."""
    low, high = before.bit_length(), (after & -after).bit_length() - 1
    size = high - low
    if size < max(_SHORTEST, _SHARE * after.bit_count()) or (whole >> low) & ((1 << size) - 1):
        return 0
    return 0 if _begins(after) or _begins(1 << low) else size


def _sure(trace: Trace, scores: frozenset[int]) -> bool:
    """Whether every loss of a figure was followed to its end."""
    events = [e for e in trace.scores if e.number in scores]
    return trace.complete and all(e.certain and not e.widened for e in events)
