"""Functions that give a model small extra parameters for a while, and those that take them away or
start them afresh.

What adapters have learnt goes with them: after such a function a model knows what its own weights
knew before.
"""

from __future__ import annotations

import ast

from niblick.audit.reads import name_of

_MADE = frozenset({"Parameter", "register_parameter"})
_FRESH = frozenset(
    {"zero_", "zeros_", "normal_", "kaiming_uniform_", "kaiming_normal_", "uniform_"}
)


def attaches(function: ast.AST) -> bool:
    """Whether a function makes parameters and hangs them on objects it is given or finds."""
    nodes = list(ast.walk(function))
    made = any(isinstance(n, ast.Call) and name_of(n.func) in _MADE for n in nodes)
    hung = any(
        (
            isinstance(n, ast.Assign)
            and any(isinstance(t, ast.Attribute) and _base(t) != "self" for t in n.targets)
        )
        or (isinstance(n, ast.Call) and name_of(n.func) in {"register_parameter", "setattr"})
        for n in nodes
    )
    return made and hung


def cleans(function: ast.AST) -> bool:
    """Whether a function deletes parameters of objects, or overwrites named ones with a fresh
    start.
    """
    for node in ast.walk(function):
        if isinstance(node, ast.Delete) and any(_deletes(target) for target in node.targets):
            return True
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


def _deletes(target: ast.expr) -> bool:
    if isinstance(target, ast.Subscript):
        return isinstance(target.value, ast.Attribute) and target.value.attr in {
            "_parameters",
            "_modules",
        }
    return isinstance(target, ast.Attribute) and "cache" not in target.attr


def _undata(node: ast.expr | None) -> ast.expr | None:
    """`p` of `p.data` and of `p.weight.data`."""
    return node.value if isinstance(node, ast.Attribute) and node.attr == "data" else node


def _base(node: ast.Attribute) -> str:
    inner: ast.expr = node
    while isinstance(inner, ast.Attribute):
        inner = inner.value
    return inner.id if isinstance(inner, ast.Name) else ""
