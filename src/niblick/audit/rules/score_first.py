"""Test-time training that scores each token before learning from it: legal (track B)."""

from __future__ import annotations

from niblick.audit.rules.case import Case, overlap, positions, scored
from niblick.audit.rules.registry import rule
from niblick.audit.types import Finding, Severity

RULE = "score-first"


@rule("score-first")
def check(case: Case) -> list[Finding]:
    """One note where the documented run learns from validation tokens only after scoring them."""
    updates = [u for u in case.trace.updates if u.positions]
    reported = scored(case.trace)
    claimed = case.claimed.scores
    counted = [e for e in reported if e.number in claimed] or reported
    if (
        not updates
        or not reported
        or any(overlap(case.trace, e) and not e.widened for e in counted)
    ):
        return []
    first = updates[0]
    return [
        case.finding(
            RULE,
            Severity.INFO,
            f"{first.where.function} learns from {positions(first.positions)} of the validation"
            " stream, each after its score was taken from the state before.",
            verdict="clean_ttt_score_first",
            pointer="C3",
            where=first.where,
            cure="Nothing to do.",
        )
    ]
