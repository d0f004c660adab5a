"""The figure must be a plain sum of the losses of all positions over their bytes."""

from __future__ import annotations

import re

from niblick.audit.conditions import in_order
from niblick.audit.flow.figures import AVERAGED, INSIDE, honest
from niblick.audit.flow.lengths import cuts_of
from niblick.audit.flow.objects import FigureEvent
from niblick.audit.rules.case import Case, positions
from niblick.audit.rules.claimed import shows
from niblick.audit.rules.registry import rule
from niblick.audit.types import Finding, Severity
from niblick.audit.words import words

RULE = "figure"
_DIGITS = re.compile(r"\d+")
_NUMERIC = words(
    "cross_entropy nll_loss log_softmax softmax logsumexp log log2 log10 exp sum mean item"
    " float gather numel round print sqrt loge ln2"
)
_SAME, _NEAR = 0.002, 0.02  # of a figure that is known, or guessed at in part
_TAIL, _FEW = 4096, 0.01  # positions; of those that are counted
_CURE = "Add up every position's loss as computed and divide once by the bytes and by ln 2."


@rule("figure")
def check(case: Case) -> list[Finding]:
    """A breach per figure that is no plain sum, a suspicion where its making was lost."""
    return [*_figures(case), *_part(case), *_again(case), *_skipped(case), *_replaced(case)]


def _figures(case: Case) -> list[Finding]:
    figures = case.trace.figures
    if not any(f.content is not None and honest(f.content) and not f.warps for f in figures):
        bad = [f for f in figures if _why(f)]
    else:
        plain = [f.scores for f in figures if f.named and f.content is not None and not _why(f)]
        whole = frozenset[int]().union(*plain)
        bad = [f for f in figures if f.named and _why(f) and not _beside(case, f)]
        bad = [f for f in bad if not (_averaged(f) and f.scores <= whole)]
    out: dict[int, Finding] = {}
    for event in bad:
        out.setdefault(event.where.line, _finding(case, event))
    return list(out.values())[:5]


def _averaged(event: FigureEvent) -> bool:
    """Whether all that is wrong with a figure is that it is a mean of others."""
    return bool(event.warps) and all(AVERAGED in warp for warp in event.warps)


def _beside(case: Case, event: FigureEvent) -> bool:
    """Whether a figure is one that its function only logs; or of the loss that a model learns from,
    whatever that is; or one of unknown content of other tokens than validation ones, as far as
    known, and not the claimed one, which is seen to be honest.
    """
    if logged_only(case, event.where.function):
        return True
    claimed = case.claimed.scores
    changed = (*event.warps, *(event.lost if event.content is None else ()))
    learnt = bool(changed) and all(each.startswith(INSIDE) for each in changed)
    if not claimed or event.scores & claimed or not (learnt or event.content is None):
        return False
    if not learnt and any(e.targets for e in case.trace.scores if e.number in event.scores):
        return False
    own = [f for f in case.trace.figures if f.scores & claimed]
    return bool(own) and not any(_why(f) for f in own)


def logged_only(case: Case, function: str) -> bool:
    """Whether another function prints the claimed figure, and it is seen to be honest there, so
    that what this one makes of the scores is not in it.
    """
    claimed = case.claimed.scores
    own = [
        f
        for f in case.trace.figures
        if f.named and f.scores & claimed and f.where.function != function
    ]
    known = bool(own) and all(f.content is not None and not _why(f) for f in own)
    return known and _printed_elsewhere(case, function)


def _printed_elsewhere(case: Case, function: str) -> bool:
    """Whether logs state the claimed figure, the best one that is stated, in lines none of which a
    function of this name prints as far as its words tell.
    """
    best = min(case.claimed.stated, key=float)
    plain = [_DIGITS.sub("0", line) for line in case.claimed.lines if shows(line, best)]
    own = [printed.pieces for printed in case.scan.printed if printed.function == function]
    return bool(plain and own) and not any(in_order(p, line) for p in own for line in plain)


def _why(event: FigureEvent) -> str:
    """What is wrong with a figure; empty if nothing is known to be."""
    if event.warps:
        return "; ".join(event.warps)
    if event.content is not None and not honest(event.content, _NEAR if event.guessed else _SAME):
        return (
            "with losses and bytes that are equal at every position it comes to"
            f" {event.content:.4g}, where a plain sum comes to 1.443 (1 in nats)"
        )
    lost = event.lost if event.content is None else ()
    if lost:
        return "its content is lost in " + "; ".join(lost)
    return "its content is not known" if event.named and event.content is None else ""


def _finding(case: Case, event: FigureEvent) -> Finding:
    assumed = event.per_token and event.scores & case.claimed.scores
    sure = bool(event.warps or (event.content is not None and (assumed or not event.guessed)))
    return case.finding(
        RULE,
        Severity.BREACH if sure and event.certain else Severity.WARNING,
        f"The figure that {event.where.function} prints is no plain sum of losses over bytes:"
        f" {_why(event)}.",
        verdict="flag_other",
        pointer="bytes",
        where=event.where,
        cure=_CURE,
    )


def _part(case: Case) -> list[Finding]:
    """A breach where every figure that counts is of the same fixed number of tokens or windows.
    So must the last one be that is printed, unless logs tell which counts and it is a named one
    itself: training reports figures of a part on its way to that of the whole, which a program that
    was not followed to its end may print beyond.
    """
    events = {e.number: e for e in case.trace.scores}
    claimed = case.claimed.scores
    scored = [f for f in case.trace.figures if f.scores]
    named = [f for f in scored if f.named]
    named = [f for f in named if f.scores & claimed] or named
    known = any(f.scores & claimed for f in named) and scored[-1].named
    counted = named if known or not named else [*named, scored[-1]]
    cuts = [cuts_of(events[n].marks) for f in counted for n in f.scores if n in events]
    shared = set.intersection(*cuts) if cuts else set()
    if not shared:
        return []
    return [
        case.finding(
            "part-of-split",
            Severity.BREACH
            if all(f.certain for f in named) and (known or case.trace.complete)
            else Severity.WARNING,
            f"{named[-1].where.function} prints a figure of a part of the validation split: what"
            f" is scored is cut to {min(map(int, shared)):,} before.",
            verdict="flag_other",
            pointer="limits",
            where=named[-1].where,
            cure="Score every token of the validation split once.",
        )
    ]


def _again(case: Case) -> list[Finding]:
    """A breach where one place adds the losses of positions to a figure that counts more than once,
    as windows do that overlap by what they score; at the very end of a split that is next to none.
    """
    claimed = case.claimed.scores
    for where, place in case.trace.summing.items():
        again = place.again & ((1 << max(0, place.kept.bit_length() - _TAIL)) - 1)
        counts = place.sums & case.trace.summed and (not claimed or claimed & place.each.keys())
        if counts and again.bit_count() > _FEW * place.kept.bit_count():
            return [
                case.finding(
                    "rescored",
                    Severity.BREACH,
                    f"{where.function} adds the losses of {positions(again)} more than once.",
                    verdict="flag_other",
                    pointer="C4",
                    where=where,
                    cure="Of each window, score only what no window before it has scored.",
                )
            ]
    return []


def _skipped(case: Case) -> list[Finding]:
    return [
        case.finding(
            RULE,
            Severity.WARNING,
            f"{where.function} goes on to the next turn of a loop depending on how large a score"
            " is: which positions are counted hangs on their own losses.",
            verdict="flag_other",
            pointer="bytes",
            where=where,
            cure=_CURE,
        )
        for where in case.trace.skips[:1]
    ]


def _replaced(case: Case) -> list[Finding]:
    out = []
    for event in case.trace.replaced:
        if event.name.rpartition(".")[2] in _NUMERIC:
            out.append(
                case.finding(
                    RULE,
                    Severity.WARNING,
                    f"The script replaces {event.name}, which its own figure is computed with.",
                    verdict="flag_other",
                    pointer="bytes",
                    where=event.where,
                    cure="Leave the library's functions as they are.",
                )
            )
    return out
