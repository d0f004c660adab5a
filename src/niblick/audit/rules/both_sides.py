"""Convolutions along the positions that reach as far ahead as back (C1): one of odd size, padded by
half of it on both sides, makes each position of the tokens after it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from niblick.audit.reads import name_of, names_in
from niblick.audit.rules.case import Case
from niblick.audit.rules.look_ahead import statements
from niblick.audit.rules.reach import Reach
from niblick.audit.rules.registry import rule
from niblick.audit.types import Finding, Severity
from niblick.audit.words import words

RULE = "look-ahead"
_PLACE = {"kernel_size": 2, "padding": 4, "dilation": 5}
_TURNS = words("transpose permute swapaxes movedim mT einsum rearrange")
_SHIFTS = words("pad roll flip cat masked_fill where tril triu")


@rule("both-sides")
def check(case: Case) -> list[Finding]:
    """A breach for the first model whose method takes such a window of its values, turned so that
    the positions come last; a suspicion where a switch, or a shift beside it, may undo it.
    """
    called = {name.rpartition(".")[2] for name, _ in case.program.calls()}
    for model in case.nodes:
        if isinstance(model, ast.ClassDef) and model.name in called:
            reach = Reach(case, model)
            layers = dict(_layers(model, reach))
            for method in model.body if layers else ():
                if isinstance(method, ast.FunctionDef) and method.name != "__init__":
                    for call in _uses(method, set(layers), reach):
                        sure = layers[name_of(call.func)] and _plain(method, call)
                        return [_finding(case, f"{model.name}.{method.name}", call, sure)]
    return []


def _finding(case: Case, where: str, node: ast.AST, sure: bool) -> Finding:
    return case.finding(
        RULE,
        Severity.BREACH if sure else Severity.WARNING,
        f"{where} takes a window of positions that reaches as far ahead as back: later tokens take"
        " part in earlier predictions.",
        verdict="flag_other" if sure else "hold_unclear",
        pointer="C1",
        line=getattr(node, "lineno", 1),
        cure="Pad on the left alone, by the whole reach of the window.",
    )


def _layers(model: ast.ClassDef, reach: Reach) -> Iterator[tuple[str, bool]]:
    """The attributes that hold such windows, and whether no switch decides it."""
    init = next((m for m in model.body if getattr(m, "name", "") == "__init__"), None)
    if not isinstance(init, ast.FunctionDef):
        return
    made = {
        name_of(node.targets[0]): (node.value, node in init.body)
        for node in statements(init.body, reach)
        if isinstance(node, ast.Assign)
    }
    local = {name: value for name, (value, _) in made.items()}
    for name, (value, plain) in made.items():
        window = value if isinstance(value, ast.Call) else None
        if window and name_of(window.func) == "Conv1d" and _both_sides(window, local):
            yield name, plain


def _uses(method: ast.FunctionDef, layers: set[str], reach: Reach) -> Iterator[ast.Call]:
    for statement in statements(method.body, reach):
        for node in ast.walk(statement):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                holder, name = name_of(node.func.value), node.func.attr
                yield from [node] if holder == "self" and name in layers else []


def _plain(method: ast.FunctionDef, call: ast.Call) -> bool:
    """Whether a call stands under no condition, in a method that turns the positions to the end and
    shifts nothing.
    """
    free = any(call in ast.walk(node) for node in method.body if not hasattr(node, "body"))
    names = names_in(method)
    cut = any(
        isinstance(n, ast.Slice) and isinstance(n.upper, ast.UnaryOp) for n in ast.walk(method)
    )
    return free and bool(names & _TURNS) and not (names & _SHIFTS or cut)


def _both_sides(call: ast.Call, local: dict[str, ast.expr]) -> bool:
    """Whether the padding of a window is half of its reach."""
    given = {k.arg: k.value for k in call.keywords}
    for name, place in _PLACE.items():
        if len(call.args) > place:
            given[name] = call.args[place]
    kernel, padding, dilation = (given.get(n) for n in _PLACE)
    if kernel is None or padding is None:
        return False
    size, half, spread = (_number(n) for n in (kernel, padding, dilation))
    if size is not None and half is not None:
        return half > 0 and 2 * half == (spread or 1) * (size - 1)
    if isinstance(padding, ast.Constant):
        return padding.value == "same" and size != 1
    padding = local.get(name_of(padding), padding)
    halves = any(
        isinstance(n, ast.BinOp) and isinstance(n.op, ast.FloorDiv) and _number(n.right) == 2
        for n in ast.walk(padding)
    )
    return halves and bool(names_in(padding) & names_in(kernel) or size is not None)


def _number(node: ast.AST | None) -> int | None:
    value = node.value if isinstance(node, ast.Constant) else None
    return value if isinstance(value, int) else None
