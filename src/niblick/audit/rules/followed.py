"""Whether the program was followed to a reported figure; what was not can never be called clean."""

from __future__ import annotations

from niblick.audit.rules.case import Case
from niblick.audit.rules.registry import rule
from niblick.audit.types import Finding, Severity

RULE = "followed"


@rule("followed")
def check(case: Case) -> list[Finding]:
    """One finding that holds the submission, with every reason why its figure is not understood."""
    reasons = list(_reasons(case))
    if not reasons or (case.submission.source is not None and case.tree is None):
        return []
    return [
        case.finding(
            RULE,
            Severity.WARNING,
            f"The evaluation was not followed to its figure: {'; '.join(reasons)}.",
            verdict="hold_unclear",
            pointer="record",
            cure="Read the script, or review the one that prints the figure.",
        )
    ]


def _reasons(case: Case) -> list[str]:
    trace = case.trace
    if case.submission.source is None:
        return ["the folder holds no Python script"]
    out = [note for note in trace.notes if note.startswith("limit:")]
    if not trace.complete and not out:
        out.append("the program was not followed to its end")
    out += [note for note in dict.fromkeys(trace.notes) if "not followed" in note][:3]
    if not trace.scores:
        out.append("nothing that it runs scores a validation token")
    elif not trace.reported:
        out.append("no sum of losses meets a count of bytes")
    return out
