"""Validation data that reaches training, calibration or a data folder's training files."""

from __future__ import annotations

import re

from niblick.audit.flow.boxes import STREAM
from niblick.audit.rules.case import Case, scored
from niblick.audit.rules.registry import rule
from niblick.audit.types import Finding, Severity

RULE = "validation-data"
_ALIAS = re.compile(
    r"^[ \t]*\$?[ \t]*(?:ln\s+-s\S*|cp(?:\s+-\w+)*|mv)\s+"
    r"(\S*(?<![a-z])val(?:id|idation)?(?![a-z])\S*)\s+(\S*(?<![a-z])train(?![a-z])\S*(?<!\.py))\s*$",
    re.MULTILINE,
)


@rule("validation-data")
def check(case: Case) -> list[Finding]:
    """Findings for calibration on validation tokens (forwards under hooks, of which no score comes
    that is reported, or learnt from, as other rules see) and for validation files passed off as
    training files.
    """
    return [*_calibration(case), *_alias(case)]


def _calibration(case: Case) -> list[Finding]:
    learnt = [event for event in case.trace.scores if event.number in case.trace.trained]
    marks = {mark for event in (*scored(case.trace), *learnt) for mark in event.marks}
    calls = [
        c
        for c in case.trace.calls
        if c.name == "calibration" and c.certain and f"hooked:{c.order}" not in marks
    ]
    if not calls:
        return []
    told = [c for c in calls if c.order in case.trace.calibrated]
    call = (told or calls)[0]
    return [
        case.finding(
            RULE,
            Severity.BREACH if told or not call.detail else Severity.WARNING,
            f"{call.where.function} calibrates the model on validation tokens (of the {STREAM}"
            " followed).",
            verdict="flag_other",
            pointer="data",
            where=call.where,
            cure="Calibrate on training tokens or on text the model generates itself.",
        )
    ]


def _alias(case: Case) -> list[Finding]:
    match = _ALIAS.search(case.submission.readme or "")
    if match is None:
        return []
    return [
        case.finding(
            RULE,
            Severity.BREACH,
            f"The README makes a validation file stand in for a training file ({match[1][-60:]} ->"
            f" {match[2][-60:]}).",
            verdict="flag_other",
            pointer="data",
            cure="Train on the training shards only.",
        )
    ]
