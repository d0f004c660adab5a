"""Count tables read with a key that holds the token being scored: no distribution is ever formed
(C2).
"""

from __future__ import annotations

from niblick.audit.rules.case import Case
from niblick.audit.rules.registry import rule
from niblick.audit.types import Finding, Severity

RULE = "ngram-key"


@rule("ngram-key")
def check(case: Case) -> list[Finding]:
    """One breach per place where such a count becomes a probability in the documented run."""
    findings: dict[int, Finding] = {}
    for event in case.trace.keys:
        if event.where.line in findings:
            continue
        findings[event.where.line] = case.finding(
            RULE,
            Severity.BREACH if event.certain else Severity.WARNING,
            f"In {event.where.function}, {event.reason}, so only that token's probability exists"
            " and nothing normalises it.",
            verdict="flag_ngram",
            pointer="C2",
            where=event.where,
            cure=(
                "Read the table by context alone, form a distribution over the whole vocabulary,"
                " then look up the token."
            ),
        )
    return list(findings.values())
