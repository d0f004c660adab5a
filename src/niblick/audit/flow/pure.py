"""Functions of plain values that can touch nothing else, followed once for each arguments.

Such a function reads its arguments, constants and functions of its own kind; it writes nothing but
its own names. Called again with equal arguments, none of which holds anything of a stream, a model
or a score, it gives what it gave before, and following it again would find nothing new.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from niblick.audit.flow.boxes import Box, snapshot
from niblick.audit.flow.objects import Dotted, Function
from niblick.audit.flow.signals import NotPlainError
from niblick.audit.flow.state import State
from niblick.audit.words import words

_FORBIDDEN = tuple(
    getattr(ast, name)
    for name in words(
        "Global Nonlocal Yield YieldFrom Await Import ImportFrom ClassDef FunctionDef"
        " AsyncFunctionDef Lambda With AsyncWith"
    )
)
_BUILTINS = words(
    "abs all any bool bytes chr divmod enumerate float int isinstance len list max min ord pow"
    " range repr reversed round set sorted str sum tuple type zip"
)
_PLAIN_MARKS = frozenset({"count", "file", "numpy", "scalar", "time", "val", "zeros"})
_LONGEST, _DEPTH = 4096, 8


def answered(
    engine: State,
    function: Function,
    args: list[Any],
    named: dict[str, Any],
    follow: Callable[[], Any],
) -> Any:
    """What a call gives: known from an equal one before, else by following it."""
    cached = "cached" in function.marks and not engine.cleared
    try:
        given = call_key(function, args, named, engine.free, cached)
    except NotPlainError:
        return follow()
    key = (*given, engine.uncertain > 0, engine.tries > 0)
    if key in engine.answers:
        result, ended = engine.answers[key]
        engine.maybe_ended += ended
        return result if cached else handed_on(result)
    before, ended = (engine.interest, engine.order, engine.raised), engine.maybe_ended
    result = follow()
    ended = engine.maybe_ended - ended
    if cached and not (engine.uncertain > 0 or engine.widened):
        engine.answers[key] = (result, ended)
    elif before == (engine.interest, engine.order, engine.raised):
        with suppress(NotPlainError):
            engine.answers[key] = (handed_on(result), ended)
    return result


def free_names(function: Function) -> frozenset[str] | None:
    """Names that a function reads from around it; None where its text does more than compute."""
    node, spec = function.node, function.node.args
    if isinstance(node, ast.AsyncFunctionDef) or function.marks - {"cached"}:
        return None
    body = [node.body] if isinstance(node, ast.Lambda) else node.body
    inside = [n for part in body for n in ast.walk(part)]
    if any(isinstance(n, _FORBIDDEN) or _writes(n) for n in inside):
        return None
    own = {a.arg for a in (*spec.posonlyargs, *spec.args, *spec.kwonlyargs)}
    own |= {a.arg for a in (spec.vararg, spec.kwarg) if a is not None}
    names = [n for n in inside if isinstance(n, ast.Name)]
    own |= {n.id for n in names if not isinstance(n.ctx, ast.Load)}
    own |= {n.name for n in inside if isinstance(n, ast.ExceptHandler) and n.name}
    defaults = [*spec.defaults, *(d for d in spec.kw_defaults if d is not None)]
    if not all(isinstance(default, (ast.Constant, ast.Name)) for default in defaults):
        return None
    around = {default.id for default in defaults if isinstance(default, ast.Name)}
    return (frozenset(n.id for n in names) - own) | around


def call_key(
    function: Function,
    args: list[Any],
    named: dict[str, Any],
    known: dict[int, frozenset[str] | None],
    cached: bool,
) -> tuple[Any, ...]:
    """What decides a call's result; `NotPlainError` where that is not plain. One that the program
    keeps itself (`functools.cache`) is decided by its arguments.
    """
    given = [_key(value) for value in args], [(k, _key(v)) for k, v in sorted(named.items())]
    read = [id(function.node)] if cached else _around(function, known, _DEPTH)
    return (tuple(given[0]), tuple(given[1]), *read)


def handed_on(value: Any) -> Any:
    """A result that may be given again, a copy of its own each time; `NotPlainError` for others."""
    _key(value)
    return snapshot(value) if isinstance(value, Box) else value


def _around(
    function: Function, known: dict[int, frozenset[str] | None], depth: int
) -> Iterator[Any]:
    """The function and everything that it reads, in an order of its own."""
    node = function.node
    if id(node) not in known:
        known[id(node)] = free_names(function)
    names = known[id(node)]
    if names is None or not depth:
        raise NotPlainError
    yield id(node)
    for name in sorted(names):
        scope = next((s for s in function.scopes if name in s), None)
        value = scope[name] if scope is not None else Dotted(f"builtins.{name}")
        if value is function:
            yield name
        elif isinstance(value, Function):
            yield from _around(value, known, depth - 1)
        elif isinstance(value, Dotted) and _computes(value.name):
            yield value.name
        else:
            yield _key(value)


def _computes(name: str) -> bool:
    """Whether a name of the library stands for arithmetic, text or an exception."""
    first, _, last = name.partition(".")
    if first == "builtins":
        return last in _BUILTINS or last.endswith("Error")
    return first == "math"


def _writes(node: ast.AST) -> bool:
    """Whether a node sets an attribute."""
    return isinstance(node, ast.Attribute) and not isinstance(node.ctx, ast.Load)


def _key(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float)):
        return type(value).__name__, value
    if isinstance(value, (str, bytes)) and len(value) <= _LONGEST:
        return value
    if isinstance(value, tuple):
        return tuple(_key(part) for part in value[:_LONGEST])
    if isinstance(value, Box):
        return _blank(value)
    raise NotPlainError


def _blank(box: Box) -> Any:
    """An unknown or a small constant: no tokens one by one, no model and no score."""
    if box.pos is not None or box.key is not None or box.targets or box.seen or box.roots:
        raise NotPlainError
    if box.scores or box.nll or box.live or box.table or not box.marks <= _PLAIN_MARKS:
        raise NotPlainError
    if box.val is not None and box.val.size > 16:
        raise NotPlainError
    content = None if box.val is None else (box.val.shape, box.val.dtype.str, box.val.tobytes())
    return "box", box.shape, content, box.marks, box.deps, box.held, box.options
