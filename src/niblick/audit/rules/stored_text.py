"""Validation text, tokens or answers kept in the code, in a shipped file or in the artifact, and
big blobs of unknown use.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from niblick.audit.reads import name_of, names_in
from niblick.audit.rules.case import Case
from niblick.audit.rules.program import Functions, Program
from niblick.audit.rules.reach import Reach
from niblick.audit.rules.registry import rule
from niblick.audit.types import Finding, Severity
from niblick.audit.words import words

RULE = "stored-text"
_LARGE = 4000
_MANY = 1000
_PACKERS = frozenset({"compress", "b85encode", "b64encode"})
_VALIDATION = re.compile(r"(?<![a-z])(?:val|valid|validation)(?![a-z])", re.IGNORECASE)
_SCORES = frozenset({"cross_entropy", "nll_loss", "log_softmax", "logsumexp", "softmax", "gather"})
_PREDICTED = re.compile(r"logit|log_?prob|nll|loss|prob|pred|score", re.IGNORECASE)
_SEEN = re.compile(r"target|val|token|label|(?:^|_)y(?:$|_)", re.IGNORECASE)
_READS = frozenset({"open", "load", "fromfile", "memmap", "read_bytes", "read_text", "loadtxt"})
_NOT_ANSWERS = re.compile(
    r"fineweb|\.model$|\.vocab$|tokenizer|val_|train_|\.ptz?$|\.log$|ckpt|checkpoint|model|byte|\.json$|\.txt$|\.nib$",
    re.IGNORECASE,
)


@rule("stored-text", of_text=True)
def check(case: Case) -> list[Finding]:
    """Breaches where stored answers meet predictions; a warning where validation tokens are packed
    for keeping.
    """
    if case.tree is None:
        return []
    program, reach = case.program, Reach(case)
    blobs = _blobs(case, program)
    out = list(_answers(case, program, reach, blobs))
    return [*out, *_packed(case, program, reach), *([] if out else _unexplained(case, blobs))]


def _blobs(case: Case, program: Program) -> dict[str, ast.expr]:
    """Names bound to a large literal or to a data file of the folder, directly or through
    decoders.
    """
    found: dict[str, ast.expr] = {}
    for _ in range(4):
        for name, values in program.defined.items():
            for value in values:
                if name not in found and (
                    _is_large(value)
                    or _is_shipped(case, value)
                    or (
                        isinstance(value, (ast.Call, ast.Subscript))
                        and names_in(value) & found.keys()
                        and not _is_model(value)
                    )
                ):
                    found[name] = value
    return found


def _is_large(value: ast.expr) -> bool:
    for part in ast.walk(value):
        text = part.value if isinstance(part, ast.Constant) else None
        if isinstance(text, (str, bytes)) and len(text) >= _LARGE:
            return True
        if (
            isinstance(part, (ast.List, ast.Tuple, ast.Set))
            and len(part.elts) >= _MANY
            and all(isinstance(e, ast.Constant) and isinstance(e.value, int) for e in part.elts)
        ):
            return True
    return False


def _is_shipped(case: Case, value: ast.expr) -> bool:
    """Whether a value is read from a file of the folder that is no model, tokenizer, log or
    text.
    """
    if not any(isinstance(p, ast.Call) and name_of(p.func) in _READS for p in ast.walk(value)):
        return False
    paths = [
        p.value
        for p in ast.walk(value)
        if isinstance(p, ast.Constant) and isinstance(p.value, str) and "." in p.value
    ]
    return any(
        not _NOT_ANSWERS.search(p) and len(p) < 200 and (case.submission.root / p).is_file()
        for p in paths
    )


def _is_model(value: ast.expr) -> bool:
    return any(
        isinstance(p, ast.Call)
        and re.search(
            r"state_dict|Module|Linear|Embedding|Processor|exec|compile", ast.unparse(p.func)
        )
        for p in ast.walk(value)
    )


def _answers(
    case: Case, program: Program, reach: Reach, blobs: dict[str, ast.expr]
) -> Iterator[Finding]:
    for functions in program.functions.values():
        for function in functions:
            if not reach.possible(function.name) or not any(
                isinstance(n, ast.Call) and name_of(n.func) in _SCORES for n in ast.walk(function)
            ):
                continue
            held = set(blobs) | _given(program, function, set(blobs))
            held |= _local(function, held)
            use = next(_uses(function, held), None)
            if use is not None:
                name = min(names_in(use) & held)
                yield case.finding(
                    RULE,
                    Severity.BREACH,
                    f"{function.name} looks up {name}, data stored with the submission, by position"
                    f" and lets it decide the score ({ast.unparse(use)[:90]}).",
                    verdict="flag_other",
                    pointer="data",
                    line=getattr(use, "lineno", function.lineno),
                    cure=(
                        "Predict every token from the model alone; store no text, tokens or answers"
                        " of the validation set."
                    ),
                )


def _given(program: Program, function: Functions, blobs: set[str]) -> set[str]:
    """Parameters of a function that some call fills with a blob."""
    names = [a.arg for a in (*function.args.posonlyargs, *function.args.args)]
    found: set[str] = set()
    for called, call in program.calls():
        if called.rpartition(".")[2] == function.name:
            found |= {
                name for name, arg in zip(names, call.args, strict=False) if _base(arg) in blobs
            }
            found |= {k.arg for k in call.keywords if k.arg and _base(k.value) in blobs}
    return found


def _local(function: Functions, held: set[str]) -> set[str]:
    """Local names that are slices or conversions of blobs."""
    found = set(held)
    for _ in range(3):
        for node in ast.walk(function):
            if (
                isinstance(node, ast.Assign)
                and isinstance(node.value, (ast.Subscript, ast.Call))
                and _base(node.value) in found
            ):
                found |= {t.id for t in node.targets if isinstance(t, ast.Name)}
    return found - held


def _base(node: ast.expr) -> str:
    """The name a chain of subscripts, conversions and methods starts from."""
    while not isinstance(node, ast.Name):
        if isinstance(node, (ast.Subscript, ast.Attribute)):
            node = node.value
        elif isinstance(node, ast.Call) and (
            node.args and not isinstance(node.func, ast.Attribute)
        ):
            node = node.args[0]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            inner = _base(node.func.value)
            if inner and not inner[:1].isupper() and inner not in {"torch", "np", "numpy", "F"}:
                return inner
            if not node.args:
                return ""
            node = node.args[0]
        else:
            return ""
    return node.id


def _uses(function: Functions, held: set[str]) -> Iterator[ast.AST]:
    """Places where stored data, indexed by something that moves, is compared with tokens or put
    into predictions.
    """
    for node in ast.walk(function):
        if (
            isinstance(node, ast.Compare)
            and len(node.comparators) == 1
            and isinstance(node.ops[0], ast.Eq)
        ):
            sides = (node.left, node.comparators[0])
            for one, other in (sides, sides[::-1]):
                if _base(one) in held and _base(other) not in held and _SEEN.search(_base(other)):
                    yield node
        elif isinstance(node, ast.Call) and name_of(node.func) in words(
            "where scatter_ scatter index_fill_ masked_fill"
        ):
            parts = [
                *node.args,
                *([node.func.value] if isinstance(node.func, ast.Attribute) else []),
            ]
            if any(names_in(p) & held for p in parts) and any(
                _PREDICTED.search(n) for p in parts for n in names_in(p)
            ):
                yield node
        elif isinstance(node, (ast.Assign, ast.AugAssign)):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                if (
                    isinstance(target, ast.Subscript)
                    and _PREDICTED.search(_base(target))
                    and names_in(target.slice) & held
                ):
                    yield node


def _packed(case: Case, program: Program, reach: Reach) -> Iterator[Finding]:
    """Validation tokens or text compressed for keeping."""
    for _, call in program.calls():
        if (
            name_of(call.func) not in _PACKERS
            or not call.args
            or not reach.possible(program.around(call))
        ):
            continue
        near = [v for name in names_in(call.args[0]) for v in program.local(call, name)]
        sources = {
            n
            for value in (call.args[0], *near)
            for part in ast.walk(value)
            for n in _tokens_of(part)
        }
        if sources:
            yield case.finding(
                RULE,
                Severity.WARNING,
                f"{program.around(call)} packs {min(sources)}, data of the validation set, for"
                " keeping.",
                verdict="flag_other",
                pointer="data",
                line=call.lineno,
                cure="Keep no validation data in the artifact or beside it.",
            )
            return


def _tokens_of(part: ast.AST) -> Iterator[str]:
    name = part.id if isinstance(part, ast.Name) else ""
    text = part.value if isinstance(part, ast.Constant) else None
    if _VALIDATION.search(name) and re.search(r"token|data|text|stream|ids", name):
        yield name
    if isinstance(text, str) and _VALIDATION.search(text) and text.endswith(".bin"):
        yield text


def _unexplained(case: Case, blobs: dict[str, ast.expr]) -> Iterator[Finding]:
    carried = bool(case.submission.source and case.submission.source.resolved)
    for name, value in blobs.items():
        if not carried and _is_large(value) and "exec" not in ast.unparse(value)[:200]:
            yield case.finding(
                RULE,
                Severity.NOTE,
                f"{name} is a large constant ({len(ast.unparse(value)):,} characters) that is no"
                " code.",
                pointer="data",
                line=value.lineno,
                cure="Say in the README what it holds and how it was made.",
            )
            return
