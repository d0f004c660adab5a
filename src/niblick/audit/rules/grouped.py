"""Models in which neighbouring positions are merged into one and taken apart again (C1).

A group of positions that is reduced to one value, and spread over the same positions again, gives
the first of them what the last holds, which is what it predicts. A shift by a group before or after
keeps order.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from niblick.audit.conditions import Guard
from niblick.audit.reads import name_of
from niblick.audit.rules.case import Case
from niblick.audit.rules.reach import Reach
from niblick.audit.rules.registry import rule
from niblick.audit.types import Finding, Severity
from niblick.audit.words import words

_RESHAPES = words("reshape view unflatten")
_REDUCTIONS = words("sum mean amax max logsumexp")
_GROUP_AXIS = 2  # of batch, groups, positions of a group, features


@rule("grouped-positions")
def check(case: Case) -> list[Finding]:
    """One suspicion where a model that may run merges groups of positions and spreads them again
    without a shift.
    """
    reach = Reach(case)
    models = [
        n
        for n in case.nodes
        if isinstance(n, ast.ClassDef) and any(name_of(b) == "Module" for b in n.bases)
    ]
    made = [model for model in models if _may_run(case, reach, model.name)]
    merging = [(m, node) for m in made for node in _merges(m)]
    spreading = [m for m in made if any(_spreads(node) for node in ast.walk(m))]
    shifted = any(_shifts(m) for m in [*spreading, *(m for m, _ in merging)])
    if not merging or not spreading or shifted:
        return []
    model, node = merging[0]
    return [
        case.finding(
            "grouped-positions",
            Severity.WARNING,
            f"{model.name} merges neighbouring positions into one, and {spreading[0].name} spreads"
            " it over them again: the first of a group is given what the next holds, which it"
            " predicts.",
            verdict="hold_unclear",
            pointer="C1",
            line=getattr(node, "lineno", 1),
            cure="Shift by a group before it is spread, so that a position sees earlier groups.",
        )
    ]


def _may_run(case: Case, reach: Reach, name: str) -> bool:
    """Whether a model is made somewhere that the settings of the run do not close."""
    calls = [n for n in case.nodes if isinstance(n, ast.Call) and name_of(n.func) == name]
    closed = [
        call
        for node in case.nodes
        if isinstance(node, (ast.If, ast.IfExp))
        for wanted, part in ((True, node.body), (False, node.orelse))
        if reach.closed(Guard(node.test, wanted))
        for inner in (part if isinstance(part, list) else [part])
        for call in ast.walk(inner)
    ]
    return any(not any(call is other for other in closed) for call in calls)


def _merges(model: ast.ClassDef) -> Iterator[ast.AST]:
    """Where a method cuts the positions into groups of a fixed size and reduces each to one."""
    for method in (n for n in model.body if isinstance(n, ast.FunctionDef)):
        parts = [n for n in ast.walk(method) if isinstance(n, ast.Call)]
        if any(_groups(call) for call in parts):
            yield from (call for call in parts if _reduces(call))


def _groups(call: ast.Call) -> bool:
    """Whether positions, the second axis, become groups: `reshape(B, T // size, size, D)`."""
    sizes = call.args
    if name_of(call.func) not in _RESHAPES or len(sizes) != _GROUP_AXIS + 2:
        return False
    groups, size = sizes[1:3]
    divided = isinstance(groups, ast.BinOp) and isinstance(groups.op, ast.FloorDiv)
    return divided and ast.dump(groups.right) == ast.dump(size)  # type: ignore[attr-defined]


def _reduces(call: ast.Call) -> bool:
    axes = [k.value for k in call.keywords if k.arg in {"dim", "axis"}] or call.args[-1:]
    over = any(isinstance(a, ast.Constant) and a.value == _GROUP_AXIS for a in axes)
    return over and name_of(call.func) in _REDUCTIONS


def _spreads(node: ast.AST) -> bool:
    """Whether groups become positions again: `reshape(B, T * size, D)`, or each is repeated."""
    if not isinstance(node, ast.Call):
        return False
    sizes = node.args
    if name_of(node.func) == "repeat_interleave":
        axes = [k.value for k in node.keywords if k.arg == "dim"] or sizes[-1:]
        return any(isinstance(a, ast.Constant) and a.value == 1 for a in axes)
    wide = name_of(node.func) in _RESHAPES and len(sizes) == _GROUP_AXIS + 1
    return wide and isinstance(sizes[1], ast.BinOp) and isinstance(sizes[1].op, ast.Mult)


def _shifts(model: ast.ClassDef) -> bool:
    """Whether a model moves values along the positions: by a slice that leaves out the last."""
    return any(
        isinstance(n, ast.Subscript)
        and isinstance(n.slice, ast.Tuple)
        and len(n.slice.elts) > 1
        and isinstance(n.slice.elts[1], ast.Slice)
        and isinstance(n.slice.elts[1].upper, ast.UnaryOp)
        for n in ast.walk(model)
    )
