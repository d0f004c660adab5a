"""Searches by trial: a loop changes weights without gradients, scores tokens, and keeps the change
or takes it back by what the score says.

What it keeps has been chosen by these tokens, as surely as if it had been trained on them.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from typing import Any

from niblick.audit.flow.boxes import Box, is_token, snapshot
from niblick.audit.flow.methods import called, tail
from niblick.audit.words import words

_RANDOM = words(
    "rand randn randint randperm rand_like randn_like randint_like normal normal_ uniform uniform_"
    " bernoulli bernoulli_ choice gauss sample standard_normal integers random multinomial"
)
_CHANGES = words(
    "copy_ add_ sub_ mul_ div_ lerp_ addcmul_ set_ index_add_ index_copy_ scatter_ masked_fill_"
    " put_ load_state_dict neg_ sign_"
)


def random_in(body: ast.AST, find: Callable[[ast.Call], list[Any]]) -> bool:
    """Whether code draws random numbers, itself or in functions of the program that it calls."""
    for call in called(body):
        if tail(call.func) in _RANDOM:
            return True
        if any(tail(c.func) in _RANDOM for f in find(call) for c in called(f.node)):
            return True
    return False


def changed_by(node: ast.If) -> Iterator[ast.expr]:
    """What the two ways of a condition change in place: the objects that they write to."""
    for part in (*node.body, *node.orelse):
        for inner in ast.walk(part):
            if isinstance(inner, ast.Call) and tail(inner.func) in _CHANGES:
                yield inner.func.value if isinstance(inner.func, ast.Attribute) else inner.func
            targets = (
                inner.targets
                if isinstance(inner, ast.Assign)
                else [inner.target]
                if isinstance(inner, ast.AugAssign)
                else []
            )
            for target in targets:
                data = isinstance(target, ast.Attribute) and target.attr == "data"
                if isinstance(target, ast.Subscript) or data:
                    yield target.value  # type: ignore[attr-defined]


def is_weights(value: Any) -> bool:
    """Whether a value may be weights: a tensor that holds no tokens, scores or counts of bytes."""
    if not isinstance(value, Box):
        return False
    return not (is_token(value) or value.scores or value.marks & {"bytes", "index", "count"})


def chosen(value: Any, positions: int) -> Any:
    """A value as kept because of the scores of these positions."""
    if isinstance(value, Box) and not value.scores and not value.live:
        return snapshot(value, seen=value.seen | positions)
    if isinstance(value, dict):
        value.update({k: chosen(v, positions) for k, v in value.items()})
    elif isinstance(value, tuple):
        return tuple(chosen(v, positions) for v in value)
    elif isinstance(value, list):
        value[:] = [chosen(v, positions) for v in value]
    return value
