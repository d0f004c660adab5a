"""Whether the bytes a figure is divided by are the bytes of the validation text (scoring: bits per
byte).

The public validation text has a fixed number of bytes under any tokenizer. A log that states a
loss, a figure in bits per byte and a number of tokens states a number of bytes too; more than the
text has is a miscount. Vocabularies that rewrite the text before cutting it are judged by what they
do to it where no log shows the sum.
"""

from __future__ import annotations

import ast
import math
import re
import statistics

from niblick.audit.conditions import log_lines
from niblick.audit.rules.case import Case
from niblick.audit.rules.reach import Reach
from niblick.audit.rules.registry import rule
from niblick.audit.types import Finding, Severity

RULE = "byte-total"
TEXT_BYTES = (151_080_891, 155_773_952)
"""Bytes of the public validation text (its first 50,000 documents), now and as first published."""
_SLACK = 1.015
_FEWEST = 3
_TOKENS = re.compile(r"\bval\w*\b[^\n]{0,160}?tokens\s*[:=]\s*([\d,_]{8,})")
_PAIR = re.compile(r"val_loss\s*[:=]\s*(\d+\.\d{4,})\s+val_bpb\s*[:=]\s*(\d+\.\d{4,})")
_REWRITING = re.compile(r"token[\s_-]?monster", re.IGNORECASE)
_FOLDED = re.compile(
    r"case[\s-]?fold|lower-?cas(?:ed|ing)\s+(?:the\s+)?(?:text|fineweb|corpus|dataset|validation)",
    re.IGNORECASE,
)
_ASIDE = re.compile(
    r"\b(?:next|future|to-?do|to do|ideas?|roadmap|plans?|related|prior|previous|credits"
    r"|not (?:work|help|used|tried)|didn't)\b",
    re.IGNORECASE,
)
_NOT_DONE = re.compile(
    r"\b(?:not (?:yet )?(?:used|applied|run|done|tried)|un(?:used|tested)|future|planned|pending"
    r"|not? (?:lower|case))\b",
    re.IGNORECASE,
)
_RESTORED = re.compile(r"loss-?less|reversible|invertible|case\s?ops", re.IGNORECASE)


@rule("byte-total")
def check(case: Case) -> list[Finding]:
    """Findings on the number of bytes behind a figure and on text that is changed before it is
    scored.
    """
    total = logged_bytes(case)
    if total is not None and total > _SLACK * TEXT_BYTES[1]:
        return [
            case.finding(
                RULE,
                Severity.BREACH,
                f"The logs' tokens, loss and bits per byte imply {total / 1e6:.1f} million bytes of"
                f" validation text, which has {TEXT_BYTES[0] / 1e6:.1f} million: the byte counts"
                " are too large and the figure too small.",
                verdict="flag_other",
                pointer="bytes",
                line=1,
                cure=(
                    "Count the UTF-8 bytes of the original text that each scored token stands for."
                ),
            )
        ]
    return [*(_rewritten(case) if total is None else []), *_folded(case)]


def logged_bytes(case: Case) -> float | None:
    """The bytes that every logged evaluation of the whole stream was divided by at least; None
    where no log tells.
    """
    lines = log_lines(case.submission.root, case.text)
    counts = {int(re.sub(r"[,_]", "", m[1])) for line in lines if (m := _TOKENS.search(line))}
    pairs = [
        (float(m[1]), float(m[2]))
        for line in lines
        if (m := _PAIR.search(line)) and float(m[2]) > 0
    ]
    if len(counts) != 1 or len(pairs) < _FEWEST:
        return None
    ratios = sorted(loss / math.log(2) / figure for loss, figure in pairs)
    return counts.pop() * min(ratios[0], statistics.median(ratios))


def _rewritten(case: Case) -> list[Finding]:
    """A vocabulary that rewrites text, with bytes per token read from a table that knows nothing of
    the rewriting.
    """
    submission = case.submission
    described = " ".join((submission.readme or "", str(submission.metadata or ""), case.text))
    if case.tree is None or not _REWRITING.search(described):
        return []
    reach = Reach(case)
    for function in case.functions:
        if reach.possible(function.name) and (line := _table_line(function)):
            return [
                case.finding(
                    RULE,
                    Severity.BREACH,
                    f"{function.name} reads a fixed number of bytes per token from a file, but the"
                    " vocabulary rewrites capitals and spaces into modifier tokens, whose bytes"
                    " are none of the text's.",
                    verdict="flag_other",
                    pointer="bytes",
                    line=line,
                    cure=(
                        "Count the bytes of the decoded text position by position, and ship the"
                        " count with the tokens."
                    ),
                )
            ]
    return []


def _table_line(function: ast.FunctionDef) -> int | None:
    """The line where a function takes a table of bytes by name out of a loaded file."""
    nodes = list(ast.walk(function))
    loads = any(
        isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute) and n.func.attr == "load"
        for n in nodes
    )
    return next(
        (
            n.lineno
            for n in nodes
            if loads
            and isinstance(n, ast.Subscript)
            and isinstance(n.slice, ast.Constant)
            and "byte" in str(n.slice.value)
        ),
        None,
    )


def _of_this_run(readme: str) -> str:
    """A README without the sections and lines that speak of other work than the run's own."""
    kept: list[str] = []
    aside = 0  # the depth of the heading of such a section, nought outside
    for line in readme.splitlines():
        depth = len(line) - len(line.lstrip("#"))
        if depth > 1 and (not aside or depth <= aside):
            aside = depth if _ASIDE.search(line) else 0
        if not aside and not _NOT_DONE.search(line):
            kept.append(line)
    return "\n".join(kept)


def _folded(case: Case) -> list[Finding]:
    submission = case.submission
    stated = " ".join((_of_this_run(submission.readme or ""), str(submission.metadata or "")))
    match = _FOLDED.search(stated)
    if match is None or _RESTORED.search(stated):
        return []
    return [
        case.finding(
            RULE,
            Severity.WARNING,
            f"The README says that the text is changed before it is scored ('{match[0]}'), and it"
            " cannot be changed back: the figure is of another text.",
            verdict="flag_other",
            pointer="bytes",
            cure="Score the original text, or encode what is taken out of it.",
        )
    ]
