"""Masks of attention that a model makes of plain numbers, as arrays: which keys a query may see."""

from __future__ import annotations

import ast
from typing import Any

import numpy as np

from niblick.audit.operators import BINARY, COMPARE
from niblick.audit.reads import name_of
from niblick.audit.rules.window import arguments, given, plain
from niblick.audit.words import words

_SIZE = 64
"""The positions of the window that a mask is made for."""
_FILLED = {"ones": np.ones, "zeros": np.zeros}
_CUT = {"tril": np.tril, "triu": np.triu}
_SAME = words("to bool contiguous cuda")
_MOST_STEPS = 8


class UnknownError(Exception):
    """A mask is made of more than plain numbers."""


def shows_later(node: ast.expr, local: dict[str, ast.expr]) -> bool:
    """Whether a mask, with the values that names were given before, lets a query see later keys."""
    try:
        mask = np.asarray(_value(node, local, _MOST_STEPS))
        whole = np.broadcast_to(mask, (_SIZE, _SIZE)) if mask.ndim <= 2 else mask.reshape(-1, _SIZE)
    except (UnknownError, ValueError, TypeError, IndexError, ZeroDivisionError):
        return False
    square = mask.ndim > 1 and whole.shape[0] == _SIZE
    return square and whole.dtype == bool and bool(np.triu(whole, 1).any())


def _value(node: ast.expr, local: dict[str, ast.expr], left: int) -> Any:
    if isinstance(node, ast.Name) and node.id in local and left:
        return _value(local[node.id], local, left - 1)
    if isinstance(node, ast.Constant) and isinstance(node.value, (bool, int)):
        return node.value
    if isinstance(node, ast.Subscript):
        return _value(node.value, local, left)[_axes(node.slice)]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Invert):
        return ~_value(node.operand, local, left)
    if isinstance(node, ast.BinOp):
        sides = (_value(side, local, left) for side in (node.left, node.right))
        return BINARY[type(node.op)](*sides)
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        sides = (_value(side, local, left) for side in (node.left, node.comparators[0]))
        return COMPARE[type(node.ops[0])](*sides)
    if isinstance(node, ast.Call):
        return _called(node, local, left)
    raise UnknownError


def _called(node: ast.Call, local: dict[str, ast.expr], left: int) -> Any:
    """What a call makes: sizes that are no plain numbers are those of the window."""
    name, args = name_of(node.func), arguments(node)
    if name == "arange" and len(args) == 1:
        return np.arange(_SIZE)
    if name in _FILLED and len(args) == 2:
        kinds = {name_of(k.value) for k in node.keywords if k.arg == "dtype"}
        return _FILLED[name]((_SIZE, _SIZE), dtype=bool if kinds & {"bool"} else float)
    if name in _CUT:
        above = given(node, words("diagonal"), 1)
        if above is not None and plain(above) is None:
            raise UnknownError
        return _CUT[name](_value(args[0], local, left), int(str(plain(above) or 0)))
    if name in _SAME and args:
        inner = _value(args[0], local, left)
        return inner.astype(bool) if name == "bool" else inner
    raise UnknownError


def _axes(node: ast.expr) -> tuple[Any, ...]:
    """A subscript that only adds axes."""
    parts = node.elts if isinstance(node, ast.Tuple) else [node]
    out = [slice(None) if isinstance(p, ast.Slice) else plain(p) for p in parts]
    whole = all(not isinstance(p, ast.Slice) or not (p.lower or p.upper or p.step) for p in parts)
    if not whole or any(p not in (None, slice(None)) for p in out):
        raise UnknownError
    return tuple(None if p is None else p for p in out)
