"""State other than weights (counts, dictionaries, files) that holds the tokens it helps to score
(C1, C3), and counts that hold only tokens scored before.
"""

from __future__ import annotations

from niblick.audit.rules.case import Case, positions
from niblick.audit.rules.registry import rule
from niblick.audit.types import Finding, Severity

RULE = "held-state"


@rule("held-state")
def check(case: Case) -> list[Finding]:
    """One finding per place where such state takes part in counted scores."""
    out: dict[int, Finding] = {}
    for event in case.trace.states:
        if event.positions and event.where.line not in out:
            out[event.where.line] = case.finding(
                RULE,
                Severity.BREACH if event.certain else Severity.WARNING,
                f"{event.where.function} scores {positions(event.positions)} with state that holds"
                " these very tokens: counts, a table, a container or a file written from the"
                " validation stream before they were scored.",
                verdict="flag_ngram",
                pointer="C3",
                where=event.where,
                cure="Write to the state only what has been scored, after its score is added up.",
            )
    if out or not case.trace.states:
        return list(out.values())
    first = case.trace.states[0]
    return [
        case.finding(
            RULE,
            Severity.INFO,
            f"{first.where.function} mixes counts of tokens scored before into its scores"
            f" ({positions(first.held)} at first): score-first, not purely neural.",
            verdict="clean_ttt_score_first",
            pointer="C3",
            where=first.where,
            cure="Nothing to do.",
        )
    ]
