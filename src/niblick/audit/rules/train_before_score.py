"""Weights trained on validation tokens that are scored afterwards, in any arrangement (C3)."""

from __future__ import annotations

from dataclasses import replace

from niblick.audit.flow.objects import ScoreEvent, UpdateEvent, Where
from niblick.audit.rules.case import (
    Case,
    certain,
    first_by_line,
    interleaved,
    overlap,
    positions,
    scored,
    violations,
)
from niblick.audit.rules.registry import rule
from niblick.audit.types import Finding, Severity

RULE = "train-before-score"


@rule("train-before-score")
def check(case: Case) -> list[Finding]:
    """One breach per place that reports scores of tokens the model's weights have already
    learnt.
    """
    out = []
    claimed = case.claimed.scores
    learnt = violations(case.trace, "module")
    events = first_by_line(sorted(learnt, key=lambda e: not certain(case.trace, e, claimed)))
    fitted = {e.where for e in violations(case.trace, "tensor") if "tensor" in e.leaf_kinds}
    for event in events if any(e.where not in fitted for e in events) else ():
        both = overlap(case.trace, event)
        step = next(
            (
                u
                for u in case.trace.updates
                if u.positions & both and u.order < event.order and "module" in u.leaf_kinds
            ),
            None,
        )
        if step is None:
            continue
        if interleaved(case.trace, step) and event.where.function != step.where.function:
            if not claimed or event.number in claimed:
                out.append(_rescored(case, event))
            continue
        sure = certain(case.trace, event, claimed) and step.certain
        trained = "train" in step.marks
        kept = "kept" in step.marks
        how = "keeps changes of the weights by the scores of" if kept else "steps the weights on"
        out.append(
            case.finding(
                RULE,
                Severity.BREACH if sure else Severity.WARNING,
                f"{step.where.function} (line {step.where.line}) {how}"
                f" validation tokens, and {event.where.function} scores {positions(both)} of them"
                " afterwards.",
                verdict="flag_other" if trained else "flag_prequant_ttt",
                pointer="C3",
                where=event.where,
                cure=(
                    "Score each chunk without gradients first, add it to the sum, and only then"
                    " train on it."
                ),
            )
        )
    return out or _between(case) or _by_others(case)


def _by_others(case: Case) -> list[Finding]:
    """What the weights learn of all processes' shares, where one of several was followed."""
    if case.alone is None or case.alone is case.trace:
        return []
    return check(replace(case, trace=case.alone, alone=None))


def _between(case: Case) -> list[Finding]:
    """A suspicion where a function only begins to report scores after weights have learnt tokens
    that lie among those it scores: of a long loop not every turn is taken, so that they may be the
    same.
    """
    claimed = case.claimed.scores
    places: dict[tuple[str, str], list[ScoreEvent]] = {}
    for event in scored(case.trace):
        if not claimed or event.number in claimed:
            places.setdefault((event.where.file, event.where.function), []).append(event)
    for events in places.values():
        first, seen, targets = events[0].order, events[0].seen, 0
        for event in events:
            targets |= event.targets
        inside = seen & ((1 << targets.bit_length()) - 1) & -(targets & -targets)
        for update in case.trace.updates:
            if update.order < first and update.positions & inside and "module" in update.leaf_kinds:
                return [_unsure(case, update, events[0].where)]
    return []


def _unsure(case: Case, update: UpdateEvent, where: Where) -> Finding:
    return case.finding(
        RULE,
        Severity.WARNING,
        f"{update.where.function} (line {update.where.line}) steps the weights on validation tokens"
        f" that lie among those which {where.function} scores afterwards.",
        verdict="flag_prequant_ttt",
        pointer="C3",
        where=where,
        cure="Score each chunk without gradients first, and only then train on it.",
    )


def _rescored(case: Case, event: ScoreEvent) -> Finding:
    return case.finding(
        "rescored",
        Severity.BREACH if certain(case.trace, event) else Severity.WARNING,
        f"{event.where.function} scores tokens again with weights that score-first training has"
        " since adapted to them.",
        verdict="flag_prequant_ttt",
        pointer="C4",
        where=event.where,
        cure=(
            "Report the figure of the one pass in which each token was scored before it was learnt."
        ),
    )
