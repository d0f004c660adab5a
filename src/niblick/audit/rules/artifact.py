"""The artifact: what is scored and measured must be the file that is shipped, and nothing else."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from niblick.audit.reads import name_of
from niblick.audit.rules.case import Case
from niblick.audit.rules.program import Program
from niblick.audit.rules.reach import Reach
from niblick.audit.rules.registry import rule
from niblick.audit.types import Finding, Severity

RULE = "artifact"
_COMPRESSES = frozenset({"compress", "ZstdCompressor", "savez_compressed"})
_LOADS = frozenset({"load_state_dict", "loads", "decompress", "load", "load_file", "frombuffer"})
_TOTAL = re.compile(
    r"total.{0,30}(?:size|bytes)|artifact.{0,30}(?:size|bytes)|submission.{0,30}(?:size|bytes)",
    re.IGNORECASE,
)
_FIGURE = re.compile(r"bpb|bits_per_byte", re.IGNORECASE)
_UNSAFE = frozenset({"pickle.load", "pickle.loads", "torch.load", "joblib.load"})


@rule("artifact")
def check(case: Case) -> list[Finding]:
    """Findings on how a script measures, reloads and scores what it ships."""
    if case.tree is None:
        return []
    program, reach = case.program, Reach(case)
    return [
        *_reloaded(case, program),
        *_measured(case, program, reach),
        *_foreign(case, program, reach),
    ]


def _reloaded(case: Case, program: Program) -> Iterator[Finding]:
    """A compressed model is written, and nothing reads one back before the figure is printed."""
    calls = [(name.rpartition(".")[2], call) for name, call in program.calls()]
    packed = next((call for name, call in calls if name in _COMPRESSES), None)
    prints = any(
        name == "print" or "log" in name
        for name, call in calls
        if _FIGURE.search(ast.unparse(call))
    )
    if packed is None or not prints or any(name in _LOADS - {"load"} for name, _ in calls):
        return
    yield case.finding(
        RULE,
        Severity.WARNING,
        "The script writes a compressed model and never reads one back: the figure is of the model"
        " in memory.",
        pointer="limits",
        line=packed.lineno,
        cure="Score the model after loading it from the very file that is shipped.",
    )


def _measured(case: Case, program: Program, reach: Reach) -> Iterator[Finding]:
    """A total size printed from element counts, or from bytes taken before they were compressed."""
    for name, call in program.calls():
        if (
            name.rpartition(".")[2] not in {"print", "log", "log0", "info", "write"}
            or not call.args
            or not reach.possible(program.around(call))
        ):
            continue
        if not _TOTAL.search(ast.unparse(call)[:200]):
            continue
        made = [
            p
            for arg in call.args
            for value in _numbers(arg)
            for p in _sources(program, call, value)
        ]
        calls = {name_of(part.func) for part in made if isinstance(part, ast.Call)}
        counted = calls & {"numel", "element_size"}
        sized = calls & {"getsize", "stat", "tell", "read_bytes", "len"}
        if counted and not sized:
            yield case.finding(
                RULE,
                Severity.WARNING,
                f"{program.around(call)} prints a total size reckoned from parameter counts, not"
                " from files.",
                pointer="limits",
                line=call.lineno,
                cure="Print the size of the files as shipped: code plus compressed model.",
            )
            return


def _numbers(node: ast.expr) -> Iterator[ast.expr]:
    if isinstance(node, ast.JoinedStr):
        yield from (part.value for part in node.values if isinstance(part, ast.FormattedValue))
    elif not isinstance(node, ast.Constant):
        yield node


def _sources(program: Program, call: ast.Call, value: ast.expr) -> Iterator[ast.AST]:
    """The parts of an expression and of what its names are given in the same function."""
    pending, seen = [value], set()
    while pending:
        for part in ast.walk(pending.pop()):
            yield part
            if isinstance(part, ast.Name) and part.id not in seen:
                seen.add(part.id)
                pending.extend(program.local(call, part.id))


def _foreign(case: Case, program: Program, reach: Reach) -> Iterator[Finding]:
    """Weights or objects loaded from outside the folder, and unpickling, which runs what the file
    says.
    """
    for name, call in program.calls():
        path = call.args[0].value if call.args and isinstance(call.args[0], ast.Constant) else None
        if not reach.possible(program.around(call)) or not isinstance(path, str):
            continue
        if (
            name.rpartition(".")[2] in {"from_pretrained", "hub"}
            or name == "torch.hub.load"
            or (name in _UNSAFE and path.startswith(("/", "~", "../", "http")))
        ):
            yield case.finding(
                RULE,
                Severity.WARNING,
                f"{program.around(call)} loads {path[:80]!r}, which is no part of the submission,"
                f" through {name}.",
                pointer="limits",
                line=call.lineno,
                cure="Use nothing but the artifact and the folder at evaluation.",
            )
