"""Layers of a program that keep running statistics of what goes through them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from enum import Enum

from niblick.audit.reads import name_of, of_self
from niblick.audit.words import words

LIBRARY = words("BatchNorm1d BatchNorm2d BatchNorm3d SyncBatchNorm LazyBatchNorm1d")
_ADDING = words("lerp_ add_ addcmul_ addcdiv_ index_add_ scatter_add_ sub_")
_SIZES = words("shape size numel dim ndim dtype device")


class Keeps(Enum):
    """When a layer gathers statistics."""

    IN_TRAINING = "in training mode"
    PERHAPS = "where a switch of its own says so"
    ALWAYS = "always"


def kept_by(node: ast.ClassDef) -> Keeps | None:
    """When `forward` of a class moves one of its buffers by what it is given, keeping part of what
    that was before; None where it does not. A cache, which is set and not moved, is none.
    """
    methods = {f.name: f for f in node.body if isinstance(f, ast.FunctionDef)}
    forward = methods.get("forward") or methods.get("__call__")
    buffers = {
        str(call.args[0].value)
        for call in ast.walk(methods["__init__"] if "__init__" in methods else ast.Pass())
        if isinstance(call, ast.Call) and name_of(call.func) == "register_buffer" and call.args
        if isinstance(call.args[0], ast.Constant)
    }
    if forward is None or not buffers:
        return None
    given = _made_of(forward)
    found = [when for when, moved in _moved(forward.body, None) if _moves(moved, buffers, given)]
    for kind in (Keeps.ALWAYS, Keeps.PERHAPS, Keeps.IN_TRAINING):
        if kind in found:
            return kind
    return None


def _moved(body: list[ast.stmt], when: Keeps | None) -> Iterator[tuple[Keeps, ast.stmt]]:
    """The plain statements of a body, and when they run."""
    for node in body:
        if isinstance(node, ast.If):
            mode = isinstance(node.test, ast.Attribute) and node.test.attr == "training"
            own = Keeps.IN_TRAINING if mode and when is not Keeps.PERHAPS else Keeps.PERHAPS
            yield from _moved(node.body, own)
            yield from _moved(node.orelse, Keeps.PERHAPS)
        elif isinstance(node, (ast.With, ast.For, ast.While)):
            yield from _moved(node.body, when)
        else:
            yield when or Keeps.ALWAYS, node


def _moves(node: ast.stmt, buffers: set[str], given: set[str]) -> bool:
    """Whether a statement adds to a buffer something made of what `forward` was given."""
    if isinstance(node, ast.AugAssign):
        return _own(node.target) in buffers and _tells(node.value, given)
    if isinstance(node, ast.Assign):
        own = {_own(target) for target in node.targets} & buffers
        kept = any(_own(part) in own for part in ast.walk(node.value))
        return bool(own) and kept and _tells(node.value, given)
    for call in (n for n in ast.walk(node) if isinstance(n, ast.Call)):
        holder = _written(call.func) & buffers
        among = (_own(part) for argument in call.args for part in ast.walk(argument))
        kept = name_of(call.func) in _ADDING or not holder.isdisjoint(among)
        if holder and kept and any(_tells(argument, given) for argument in call.args):
            return True
    return False


def _written(function: ast.expr) -> set[str]:
    """The attribute of `self` that a method writes in place, as its name says."""
    if not isinstance(function, ast.Attribute) or function.attr[-1:] != "_":
        return set()
    node: ast.AST = function.value
    while isinstance(node, (ast.Call, ast.Attribute, ast.Subscript)) and not _own(node):
        node = node.func if isinstance(node, ast.Call) else node.value
    return {_own(node)}


def _own(node: ast.AST) -> str:
    """The name of an attribute of `self`, or of what is picked out of one."""
    while isinstance(node, ast.Subscript):
        node = node.value
    return of_self(node)


def _made_of(forward: ast.FunctionDef) -> set[str]:
    """The names that hold what `forward` is given, or something made of it."""
    found = {argument.arg for argument in forward.args.args[1:]}
    while True:
        made = {
            part.id
            for node in ast.walk(forward)
            if isinstance(node, ast.Assign) and _tells(node.value, found)
            for target in node.targets
            for part in ast.walk(target)
            if isinstance(part, ast.Name)
        }
        if made <= found:
            return found
        found |= made


def _tells(node: ast.AST, given: set[str]) -> bool:
    """Whether an expression has more of what is given than its sizes."""
    if isinstance(node, ast.Attribute) and node.attr in _SIZES:
        return False
    if isinstance(node, ast.Name):
        return node.id in given
    return any(_tells(child, given) for child in ast.iter_child_nodes(node))
