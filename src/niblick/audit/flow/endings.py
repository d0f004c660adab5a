"""Loops over the validation stream that a count ends before its end: `if done >= most: break`.

The engine's stream is short, so that such a count may never come to its bound there.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from typing import Any

from niblick.audit.flow.boxes import Box
from niblick.audit.flow.lengths import early, few, is_fixed
from niblick.audit.flow.missed import stored_in
from niblick.audit.reads import name_of

_READS = frozenset({"item", "float", "int"})


def bounds(node: ast.For | ast.AsyncFor, value: Callable[[ast.expr], Any]) -> Iterator[int]:
    """The fixed numbers, few beside the split, at which counts that a loop keeps of tokens or bytes
    end it; `value` tells what an expression comes to after the turns that were taken.
    """
    turns = {name_of(n) for n in ast.walk(node.target)} - {""}
    kept = {*stored_in(node.body), *turns}
    for test in _leaving(node.body):
        for part in _all(test):
            if isinstance(part, ast.Compare) and len(part.ops) == 1 and _plain(part):
                left, right = part.left, part.comparators[0]
                if isinstance(part.ops[0], (ast.Lt, ast.LtE)):
                    left, right = right, left
                names = {n.id for n in ast.walk(left) if isinstance(n, ast.Name)} & kept
                limit = value(right)
                if names and is_fixed(limit) and _counts(value(left), limit, names <= turns):
                    yield int(limit)


def _leaving(body: list[ast.stmt]) -> Iterator[ast.expr]:
    """The conditions under which a loop is left, those of loops inside it aside."""
    for node in body:
        if isinstance(node, ast.If):
            if any(isinstance(n, (ast.Break, ast.Return)) for n in node.body):
                yield node.test
            yield from _leaving([*node.body, *node.orelse])
        elif isinstance(node, (ast.With, ast.Try)):
            yield from _leaving(node.body)


def _all(test: ast.expr) -> list[ast.expr]:
    """The conditions that must all hold."""
    both = isinstance(test, ast.BoolOp) and isinstance(test.op, ast.And)
    return test.values if isinstance(test, ast.BoolOp) and both else [test]


def _plain(test: ast.expr) -> bool:
    """Whether a comparison only reads: it calls nothing but conversions."""
    calls = (n for n in ast.walk(test) if isinstance(n, (ast.Call, ast.NamedExpr)))
    return all(isinstance(n, ast.Call) and name_of(n.func) in _READS for n in calls)


def _counts(value: Any, limit: float, of_turns: bool) -> bool:
    """Whether a value is a count of what is walked through, which the whole split brings beyond a
    limit: what the last turn begins with, another number (where the limit is one of tokens), bytes.
    """
    if isinstance(value, Box):
        return "bytes" in value.marks and few(limit, of_bytes=True)
    number = isinstance(value, (int, float)) and value > 0
    return number and (few(limit) or (of_turns and early(limit, value)))
