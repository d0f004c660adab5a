"""A script that cannot be parsed or imported for a reason of its own."""

from __future__ import annotations

from niblick.audit.rules.case import Case
from niblick.audit.types import Finding, Severity

RULE = "import"


def check(case: Case) -> list[Finding]:
    """A breach for a script that does not parse; a note for one that is not there."""
    source = case.submission.source
    if source is None:
        return [case.finding(
            RULE, Severity.WARNING, "The folder holds no Python script to review.", pointer="record",
            cure="Add the training script to the folder.",
        )]
    if source.error is None:
        return []
    return [case.finding(
        RULE, Severity.BREACH, f"{source.path} cannot be read as a program: {source.error}.", verdict="import_fail",
        pointer="record", line=1, cure="Ship the file as it was run; check that the packed payload is complete.",
    )]
