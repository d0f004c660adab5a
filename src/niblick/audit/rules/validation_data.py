"""Validation data that reaches training, calibration or a data folder's training files."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from niblick.audit.flow.boxes import STREAM
from niblick.audit.reads import name_of
from niblick.audit.rules.case import Case, scored
from niblick.audit.rules.registry import rule
from niblick.audit.types import Finding, Severity

RULE = "validation-data"
_COPIES = {
    *(f"os.{name}" for name in ("symlink", "link", "rename", "replace")),
    *(f"shutil.{name}" for name in ("copy", "copy2", "copyfile", "move")),
}
_SHELLS = {"system", "run", "call", "check_call", "check_output", "Popen"}
_ALIAS = re.compile(
    r"(?:^|&&|;)[ \t]*\$?[ \t]*(?:ln\s+-s\S*|cp(?:\s+-\w+)*|mv)\s+"
    r"(\S*(?<![a-z])val(?:id|idation)?(?![a-z])\S*)\s+"
    r"(\S*(?<![a-z])train(?![a-z])\S*(?<!\.py))\s*(?:$|&&|;)",
    re.MULTILINE,
)
_TRAINED = re.compile(
    r"[^.\n;|]{0,60}?\b(?:val(?:idation)?-only\s+training|train(?:ed|ing)?\s+(?:entirely|only|solely)"
    r"\s+on\s+(?:the\s+)?val(?:idation)?\s+(?:set|split|shard|data|tokens))\b",
    re.IGNORECASE,
)
_OTHERS = re.compile(
    r"\b(?:no|non|not|never|without|unlike|than|vs|versus|instead|avoid\w*|other|others)\b|n't",
    re.IGNORECASE,
)


@rule("validation-data")
def check(case: Case) -> list[Finding]:
    """Findings for calibration on validation tokens (forwards under hooks, of which no score comes
    that is reported, or learnt from, as other rules see), for validation files passed off as
    training files, and where the submission says itself that it trains on the validation text.
    """
    return [*_calibration(case), *_alias(case), *_stated(case)]


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


def _commands(case: Case) -> Iterator[str]:
    """What the submission has a shell do, or does in its place."""
    yield case.submission.readme or ""
    for path in case.submission.context:
        if path.suffix == ".sh":
            yield path.read_text("utf-8", "replace")
    for _, call in case.program.calls():
        said = [str(n.value) for n in ast.walk(call) if isinstance(n, ast.Constant)]
        if ast.unparse(call.func) in _COPIES and len(said) > 1:
            yield f"cp {said[0]} {said[1]}"
        elif name_of(call.func) in _SHELLS:
            yield " ".join(said)


def _alias(case: Case) -> list[Finding]:
    match = next(filter(None, map(_ALIAS.search, _commands(case))), None)
    if match is None:
        return []
    return [
        case.finding(
            RULE,
            Severity.BREACH,
            "The submission makes a validation file stand in for a training file"
            f" ({match[1][-60:]} -> {match[2][-60:]}).",
            verdict="flag_other",
            pointer="data",
            cure="Train on the training shards only.",
        )
    ]


def _stated(case: Case) -> list[Finding]:
    """A breach where README and `submission.json` both say so, a suspicion where one does."""
    texts = (case.submission.readme or "", str(case.submission.metadata or ""))
    said = [m[0] for text in texts if (m := _said(text))]
    if not said:
        return []
    both = len(said) == len(texts)
    return [
        case.finding(
            RULE,
            Severity.BREACH if both else Severity.WARNING,
            "The submission states that it trains on the validation text:"
            f" {said[0].strip()[-80:]}.",
            verdict="flag_other" if both else "hold_unclear",
            pointer="data",
            cure="Train on the training shards only.",
        )
    ]


def _said(text: str) -> re.Match[str] | None:
    return next((m for m in _TRAINED.finditer(text) if not _OTHERS.search(m[0])), None)
