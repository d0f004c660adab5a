"""Searches by trial: a loop changes weights without gradients, scores tokens, and keeps the change
or takes it back by what the score says.

What it keeps has been chosen by these tokens, as surely as if it had been trained on them.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from niblick.audit.flow.boxes import WITNESS, Box, is_token, snapshot
from niblick.audit.flow.figures import ADDED, PICKED, SHARE, WARP
from niblick.audit.reads import name_of
from niblick.audit.words import words

BEST = "the smallest of several figures is taken"
_CHANGES = words(
    "copy_ add_ sub_ mul_ div_ lerp_ addcmul_ set_ index_add_ index_copy_ scatter_ masked_fill_"
    " put_ load_state_dict neg_ sign_"
)
_CHAIN = (ast.Name, ast.Attribute, ast.expr_context)


def changed_by(node: ast.If) -> Iterator[ast.expr]:
    """What the two ways of a condition change in place: the objects that they write to, as far as
    names lead to them.
    """
    for inner in (n for part in (*node.body, *node.orelse) for n in ast.walk(part)):
        written: list[ast.expr] = []
        if isinstance(inner, ast.Call) and name_of(inner.func) in _CHANGES:
            written = [inner.func]
        elif isinstance(inner, ast.Assign):
            written = inner.targets
        elif isinstance(inner, ast.AugAssign):
            written = [inner.target]
        for target in written:
            if isinstance(target, ast.Subscript) or name_of(target) in {"data", *_CHANGES}:
                holder = target.value  # type: ignore[attr-defined]
                if all(isinstance(n, _CHAIN) for n in ast.walk(holder)):
                    yield holder


def kept_names(node: ast.If | ast.IfExp) -> Iterator[str]:
    """Names whose values the two ways of a condition put under others."""
    values: list[ast.AST] = [node.body, node.orelse] if isinstance(node, ast.IfExp) else []
    if isinstance(node, ast.If):
        inside = (n for part in (*node.body, *node.orelse) for n in ast.walk(part))
        values = [n.value for n in inside if isinstance(n, ast.Assign)]
    for value in values:
        yield from (n.id for n in ast.walk(value) if isinstance(n, ast.Name))


def is_weights(value: Any) -> bool:
    """Whether a value may be weights: a tensor that holds no tokens, scores or counts of bytes, and
    is not one number.
    """
    if not isinstance(value, Box) or (value.shape == () and not value.live):
        return False
    return not (is_token(value) or value.scores or value.marks & {"bytes", "index", "count"})


def as_kept(value: Any, tried: int, told: int, line: int) -> Any:
    """A value as it is after a choice: by the scores of `tried` a search keeps weights, by those of
    `told` figures and settings (positions as bits; 0: none).
    """
    value = throughout(value, chosen, tried) if tried else value
    return throughout(value, picked, told, line) if told else value


def chosen(value: Any, positions: int) -> Any:
    """Weights as a search keeps them because of the scores of these positions."""
    plain = isinstance(value, Box) and not value.scores and not value.live
    return snapshot(value, seen=value.seen | positions) if plain else value


def picked(value: Any, positions: int, line: int) -> Any:
    """What is kept because of the scores of these positions: a figure becomes the best of several,
    a plain number a setting that is fitted to them.
    """
    if isinstance(value, Box) and value.scores:
        return snapshot(value, marks=value.marks | {f"{WARP}{BEST} (line {line})"})
    if isinstance(value, Box) and value.shape in {(), None} and not _has_more(value):
        return snapshot(value, seen=value.seen | positions, marks=value.marks | {f"{PICKED}{line}"})
    if type(value) in {int, float} and positions:
        return picked(Box(shape=(), val=np.asarray(value)), positions, line)
    return value


def _has_more(value: Box) -> bool:
    """Whether a value is more than a plain number: weights, scores or tokens."""
    return value.live or bool(value.scores or value.roots) or is_token(value)


def throughout(value: Any, change: Callable[..., Any], *told: int) -> Any:
    """A value with what it holds changed."""
    if isinstance(value, dict):
        value.update({k: throughout(v, change, *told) for k, v in value.items()})
    elif isinstance(value, tuple):
        return tuple(throughout(v, change, *told) for v in value)
    elif isinstance(value, list):
        value[:] = [throughout(v, change, *told) for v in value]
    return change(value, *told)


def over_ranks(value: Any, how: set[str]) -> None:
    """A value becomes the sum of those that the ranks of a run have, or a mean of their sums, which
    are larger than the loss, or the bytes, of any token.
    """
    if not isinstance(value, Box) or how & {"MIN", "MAX"}:
        return
    if "AVG" not in how:
        value.marks |= {ADDED}
    elif value.val is not None and value.val.max(initial=0) > WITNESS.max():
        value.marks |= {SHARE}
