"""What a model's own methods do to it: train, start it afresh, or change the loss they return.

A model's `forward` is not interpreted each time it is called; its text, and that of the functions
it calls, tells whether it must be. Names of methods and classes play no part.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from typing import Any

from niblick.audit.flow.objects import Class, Function
from niblick.audit.reads import name_of
from niblick.audit.words import words

Scopes = tuple[dict[str, Any], ...]
_LEARNS = frozenset({"backward", "grad", "step"})
_MAKES = words(
    "Parameter Linear Embedding LayerNorm Conv1d Conv2d ModuleList ModuleDict Sequential"
    " ParameterList ParameterDict register_parameter"
)
_VALUES = words("Tensor LongTensor FloatTensor BoolTensor Path ValueError RuntimeError")
_FRESH = words(
    "zero_ zeros_ fill_ constant_ normal_ uniform_ trunc_normal_ kaiming_uniform_"
    " kaiming_normal_ xavier_uniform_ xavier_normal_ orthogonal_ ones_ copy_"
)
_ALL = frozenset(["parameters", "modules", "children", "named_parameters", "named_modules"])
_DEPTH = 5


def is_own(node: ast.Attribute) -> bool:
    """Whether a node sets a field of `self`."""
    own = isinstance(node.value, ast.Name) and node.value.id == "self"
    return own and isinstance(node.ctx, ast.Store)


def called(function: ast.AST) -> Iterator[ast.Call]:
    """Every call in a function's text."""
    return (n for n in ast.walk(function) if isinstance(n, ast.Call))


def learns(
    function: Function,
    find: Callable[[Scopes, ast.Call], list[Function]],
    known: dict[int, bool],
    depth: int = 0,
) -> bool:
    """Whether a function computes gradients or steps, itself or in what it calls."""
    key = id(function.node)
    if key not in known:
        known[key] = False
        known[key] = any(
            name_of(call.func) in _LEARNS
            or (
                depth < _DEPTH
                and any(learns(f, find, known, depth + 1) for f in find(function.scopes, call))
            )
            for call in called(function.node)
        )
    return known[key]


def starts_afresh(cls: Class | None, function: Function, depth: int = 0) -> bool:
    """Whether a method overwrites every parameter that its class makes."""
    if cls is None or depth > _DEPTH:
        return False
    init = cls.find("__init__")
    if not isinstance(init, Function):
        return False
    made = set(_made(init.node))
    fresh = set(_overwritten(function.node))
    return bool(made) and (made <= fresh or "*" in fresh)


def _made(init: ast.AST) -> Iterator[str]:
    """Attributes that a constructor fills with parameters or layers."""
    for node in ast.walk(init):
        if isinstance(node, ast.Assign) and any(
            name_of(c.func) in _MAKES or name_of(c.func)[:1].isupper() for c in called(node.value)
        ):
            for target in node.targets:
                if isinstance(target, ast.Attribute):
                    yield target.attr


def _overwritten(function: ast.AST) -> Iterator[str]:
    """Attributes of `self` that a method overwrites in place; `*` for all of them."""
    loops = {
        name_of(n.target): n.iter
        for n in ast.walk(function)
        if isinstance(n, ast.For) and isinstance(n.target, ast.Name)
    }
    for call in called(function):
        if name_of(call.func) not in _FRESH and not name_of(call.func).startswith("reset"):
            continue
        receiver = call.func.value if isinstance(call.func, ast.Attribute) else None
        for part in (receiver, *call.args[:1]):
            for node in ast.walk(part) if part is not None else ():
                if isinstance(node, ast.Attribute) and name_of(node.value) == "self":
                    yield node.attr
                if isinstance(node, ast.Name) and node.id in loops:
                    yield from _looped(node.id, loops, _DEPTH)


def _looped(name: str, loops: dict[str, ast.expr], depth: int) -> Iterator[str]:
    """The attributes of `self` that a loop variable runs over, through loops around its own."""
    for node in ast.walk(loops[name]):
        if isinstance(node, ast.Attribute) and name_of(node.value) == "self":
            yield "*" if node.attr in _ALL else node.attr
        if isinstance(node, ast.Name) and node.id in loops and depth:
            yield from _looped(node.id, loops, depth - 1)


def small(cls: Class | None) -> bool:
    """Whether a model's class makes no embedding or output layer: it adapts another model."""
    init = cls.find("__init__") if cls is not None else None
    return isinstance(init, Function) and not any(
        name_of(c.func) in {"Embedding", "EmbeddingBag"} for c in called(init.node)
    )


def module_kind(node: ast.ClassDef, inherited: bool = False) -> str:
    """What kind of class a module's is: "tables" where it keeps buffers (perhaps `inherited` ones)
    and nothing that learns or is made of modules, so that what it computes is the program's, as of
    any object; else "module".
    """
    inits = [f for f in node.body if isinstance(f, ast.FunctionDef) and f.name == "__init__"]
    names = [name_of(call.func) for init in inits for call in called(init)]
    made = [name for name in names if name[:1].isupper() and name not in _VALUES]
    keeps = inherited or "register_buffer" in names
    return "tables" if keeps and not made and _MAKES.isdisjoint(names) else "module"


__all__ = ["called", "is_own", "learns", "module_kind", "small", "starts_afresh"]
