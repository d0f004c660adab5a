"""Whether the bytes a figure is divided by are the bytes of the validation text (scoring: bits per
byte).

The public validation text has a fixed number of bytes under any tokenizer. A log that states a
loss, a figure in bits per byte and a number of tokens states a number of bytes too; more than the
text has is a miscount. Vocabularies that rewrite the text before cutting it are judged by what they
do to it where no log shows the sum.
"""

from __future__ import annotations

import ast
import re

from niblick.audit.rules.case import Case
from niblick.audit.rules.logged import TEXT_BYTES, Logged, logged, of_claim
from niblick.audit.rules.reach import Reach
from niblick.audit.rules.registry import rule
from niblick.audit.types import Finding, Severity

RULE = "byte-total"
_REWRITING = re.compile(r"token[\s_-]?monster", re.IGNORECASE)
_MARKED = re.compile(r"^(?=\S*[/.])\S*(?:case_?ops|loss-?less_?caps)\S*$", re.IGNORECASE)
_SIDECAR = re.compile(r"val_bytes|bytes_\*|side-?car", re.IGNORECASE)
_FOLDED = re.compile(
    r"case[\s-]?fold|lower-?cas(?:ed|ing)\s+(?:the\s+)?(?:text|fineweb|corpus|dataset|validation)",
    re.IGNORECASE,
)
_OTHER_DATA = re.compile(
    r"data ?sets? (?:\w+ ){0,3}(?:is|are|was|were) (?:different|other|my own|our own)"
    r"|(?:different|other|own|custom) (?:validation|data ?set)",
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
    told = logged(case)
    return [
        *_excess(case, told),
        *([] if any(log.tokens for log in told) else _rewritten(case)),
        *(_part(case, log) for log in [log for log in told if log.part][:1]),
        *(_odd(case, log.odd) for log in [log for log in told if log.odd][:1]),
        *_marked(case),
        *_folded(case),
    ]


def _excess(case: Case, told: list[Logged]) -> list[Finding]:
    """A breach; a suspicion where the submission says that its data are of its own, or where the
    logs are not those of the claimed figure.
    """
    total = max((log.excess for log in told), default=0.0)
    if not total:
        return []
    why = ""
    if _OTHER_DATA.search(_stated(case)) or _FOLDED.search(_stated(case)):
        why = "it is another text"
    elif not of_claim(case, told):
        why = "their byte counts are too large, and none of them shows the claimed figure"
    return [
        case.finding(
            RULE,
            Severity.WARNING if why else Severity.BREACH,
            f"The logs' tokens, loss and bits per byte imply {total / 1e6:.1f} million bytes of"
            f" validation text, which has {TEXT_BYTES[0] / 1e6:.1f} million: "
            f"{why or 'the byte counts are too large and the figure too small'}.",
            verdict="flag_other",
            pointer="bytes",
            line=1,
            cure="Count the UTF-8 bytes of the original text that each scored token stands for.",
        )
    ]


def _part(case: Case, log: Logged) -> Finding:
    return case.finding(
        "part-of-split",
        Severity.BREACH,
        f"The log of the claimed figure says that its validation stream has {log.tokens:,} tokens,"
        " fewer than the whole split under any vocabulary.",
        verdict="flag_other",
        pointer="limits",
        line=1,
        cure="Score every token of the validation split once.",
    )


def _odd(case: Case, share: float) -> Finding:
    many, few = "more", "what makes it so small is not its loss"
    if share < 0:
        many, few = "fewer", "positions are scored twice, or only some of them"
    return case.finding(
        RULE,
        Severity.WARNING,
        f"By its own loss the claimed figure counts {abs(share):.2%} {many} bytes a"
        f" token than the text has: {few}.",
        verdict="hold_unclear",
        pointer="bytes",
        line=1,
        cure="State loss and figure of one and the same sum over every token of the split.",
    )


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


def _marked(case: Case) -> list[Finding]:
    """A suspicion where the paths of the script's data speak of marks for capitals, and nothing in
    it reads how many bytes of the text each token stands for: a name decides no more than that.
    """
    chosen = [v for k, v in case.environment.items() if "TOKENIZER" in k or "DATA" in k]
    paths = chosen or [str(n.value) for n in case.nodes if isinstance(n, ast.Constant)]
    if not any(map(_MARKED.search, paths)) or _SIDECAR.search(case.text):
        return []
    return [
        case.finding(
            RULE,
            Severity.WARNING,
            "By its name the vocabulary that the script takes writes capitals as marks, which are"
            " none of the text's bytes, and the script reads no count of bytes made from the text.",
            verdict="hold_unclear",
            pointer="bytes",
            line=1,
            cure="Read the bytes of each token from a file that the tokens were written with.",
        )
    ]


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


def _stated(case: Case) -> str:
    """What README and metadata say of the run itself."""
    submission = case.submission
    return " ".join((_of_this_run(submission.readme or ""), str(submission.metadata or "")))


def _folded(case: Case) -> list[Finding]:
    stated = _stated(case)
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
