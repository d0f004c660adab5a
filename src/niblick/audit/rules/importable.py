"""A script that cannot be parsed or imported for a reason of its own."""

from __future__ import annotations

from niblick.audit import flow
from niblick.audit.rules.case import Case
from niblick.audit.rules.registry import rule
from niblick.audit.types import Finding, Severity

RULE = "import"


@rule("importable")
def check(case: Case) -> list[Finding]:
    """A breach for a script that does not parse; a note for one that is not there."""
    source = case.submission.source
    if source is None:
        return [
            case.finding(
                RULE,
                Severity.WARNING,
                "The folder holds no Python script to review.",
                pointer="record",
                cure="Add the training script to the folder.",
            )
        ]
    if source.error is None:
        return _unavoidable(case)
    return [
        case.finding(
            RULE,
            Severity.BREACH,
            f"{source.path} cannot be read as a program: {source.error}.",
            verdict="import_fail",
            pointer="record",
            line=1,
            cure="Ship the file as it was run; check that the packed payload is complete.",
        )
    ]


def _unavoidable(case: Case) -> list[Finding]:
    """A breach for an exception that every import of the script raises, whatever is installed."""
    if case.tree is None:
        return []
    bare, documented = (
        flow.import_failure(case.tree, file="", environment=e) for e in ({}, case.environment)
    )
    if bare is None or documented is None:
        return []
    line, what = bare
    return [
        case.finding(
            RULE,
            Severity.BREACH,
            f"Importing the script always fails: {what}.",
            verdict="import_fail",
            pointer="record",
            line=line,
            cure="Give settings defaults that their own conversion accepts.",
        )
    ]
