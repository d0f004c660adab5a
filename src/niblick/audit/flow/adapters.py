"""Functions that give a model small extra parameters for a while, and those that take them away or
start them afresh.

What adapters have learnt goes with them: after such a function a model knows what its own weights
knew before. What is deleted is an adapter only if a function has hung it on.
"""

from __future__ import annotations

import ast

from niblick.audit.reads import name_of

ANY = "*"
_MADE = frozenset({"Parameter", "register_parameter"})
_FRESH = frozenset(
    {"zero_", "zeros_", "normal_", "kaiming_uniform_", "kaiming_normal_", "uniform_"}
)


def hung(function: ast.AST) -> frozenset[str]:
    """The names under which a function hangs parameters that it makes on objects it is given or
    finds; `ANY` where a call names them.
    """
    nodes = list(ast.walk(function))
    calls = [name_of(n.func) for n in nodes if isinstance(n, ast.Call)]
    if not _MADE.intersection(calls):
        return frozenset()
    named = {ANY} if {"register_parameter", "setattr"}.intersection(calls) else set()
    assigned = (t for n in nodes if isinstance(n, ast.Assign) for t in n.targets)
    places = (t for t in assigned if isinstance(t, ast.Attribute) and _base(t) != "self")
    return frozenset(named | {place.attr for place in places})


def taken(function: ast.AST) -> frozenset[str]:
    """The names of what a function deletes from objects; `ANY` where it looks them up."""
    deleted = (t for n in ast.walk(function) if isinstance(n, ast.Delete) for t in n.targets)
    return frozenset(name for target in deleted for name in _deletes(target))


def are_off(deleted: frozenset[str], known: set[str]) -> bool:
    """Whether something among what is deleted had been hung on."""
    return bool(known and deleted and ({ANY} & (deleted | known) or deleted & known))


def refreshes(function: ast.AST) -> bool:
    """Whether a function overwrites named parameters with a fresh start."""
    for node in ast.walk(function):
        if isinstance(node, ast.Call) and name_of(node.func) in _FRESH:
            holder = node.func.value if isinstance(node.func, ast.Attribute) else None
            named = [holder, *node.args[:1]]
            if any(
                isinstance(_undata(part), ast.Attribute)
                and name_of(_undata(part)) not in {"grad", "init"}
                for part in named
            ):
                return True
    return False


def _deletes(target: ast.expr) -> set[str]:
    if isinstance(target, ast.Subscript):
        return {ANY} if name_of(target.value) in {"_parameters", "_modules"} else set()
    return {target.attr} if isinstance(target, ast.Attribute) else set()


def _undata(node: ast.expr | None) -> ast.expr | None:
    """`p` of `p.data` and of `p.weight.data`."""
    return node.value if isinstance(node, ast.Attribute) and node.attr == "data" else node


def _base(node: ast.Attribute) -> str:
    inner: ast.expr = node
    while isinstance(inner, ast.Attribute):
        inner = inner.value
    return inner.id if isinstance(inner, ast.Name) else ""
