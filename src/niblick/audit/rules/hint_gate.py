"""A hint that is only there when the token it is for has some property: its presence tells the
answer (C1).
"""

from __future__ import annotations

from niblick.audit.rules.case import Case
from niblick.audit.rules.registry import rule
from niblick.audit.types import Finding, Severity

RULE = "hint-gate"


@rule("hint-gate")
def check(case: Case) -> list[Finding]:
    """One breach per source of such hints that takes part in a score with a weight and a threshold
    that lets it.
    """
    return [
        case.finding(
            RULE,
            Severity.BREACH,
            f"{hint.name} writes a hint for a token only where a property of that very token allows"
            " it, and the hint changes the token's probability: whether it is there already tells"
            " something about the token.",
            verdict="flag_ngram",
            pointer="C1",
            where=hint.where,
            cure="Decide whether there is a hint from the tokens before it alone.",
        )
        for hint in case.trace.hints.values()
        if hint.used and not hint.off
    ]
