"""State that holds stream positions outside weights: count tables, dictionaries, sets, files.

What is written under a key made of validation tokens, or is counted or reduced over them, is *held*
by the array or container it goes to; whatever is read from there carries these positions, and a
score that they take part in must not be of a position among them.
"""

from __future__ import annotations

import ast
from typing import Any

import numpy as np

from niblick.audit.flow.boxes import Box, collect, depends, is_token
from niblick.audit.flow.state import State

ALPHABET = "alphabet"
"""The mark of keys that were made for every token of the alphabet, and of the counts read with
them, until these are divided by their own sum.
"""
SUMMED = "summed"
"""The mark of sums over such counts."""
ALONE = "alone"
"""The mark of the one of such counts that belongs to a token of the stream."""
LEAST = "least"
"""The mark of the smallest of several scores, until something is taken off it or it off that."""
_SMALL = 64
_MOST = 8192
_RUN = 1024
_JOINING = (ast.Add, ast.BitXor, ast.BitOr)


class Keeping(State):
    """Notes which positions containers hold."""

    def written(self, sources: list[Box]) -> int:
        """The positions that state holds once `sources`, keys or values, have been written to
        it.
        """
        held = 0
        for source in sources:
            held |= source.held
            if is_token(source) and source.marks.isdisjoint({"index", "count"}):
                held |= depends(source)
        return held

    def keep(self, container: Any, *values: Any) -> None:
        """Something is put into a dictionary or set of the program."""
        held = self.written([b for v in values for b in tokens_in(v) if not _is_run(b)])
        if held:
            self.holding[id(container)] = (container, self.kept(container) | held)

    def kept(self, container: Any) -> int:
        """The positions that a container holds."""
        found = self.holding.get(id(container))
        return found[1] if found is not None else 0

    def with_held(self, value: Any, held: int) -> Any:
        """A value as read from state that holds positions."""
        if not held:
            return value
        if value is None:
            return Box(shape=(), held=held, marks=frozenset({"maybe_none", "count"}))
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return Box(shape=(), held=held, marks=frozenset({"count"}))
        if isinstance(value, Box):
            out = Box()
            for name in Box.__slots__:
                setattr(out, name, getattr(value, name))
            out.held |= held
            out.marks |= {"count"}
            return out
        return value


def for_each_token(op: ast.operator, a: Box, b: Box) -> bool:
    """Whether arithmetic joins tokens of the stream with a row of numbers, one for each token that
    there may be.
    """
    if not isinstance(op, _JOINING) or not is_token(a) or b.pos is not None or b.deps:
        return False
    if b.val is None:
        return b.marks == {"index"}  # numbers up to one that is not known
    return b.val.dtype.kind in "iu" and bool(
        b.val.size > _SMALL and np.ptp(b.val) == b.val.size - 1
    )


def shares(op: ast.operator, a: Box, b: Box, out: Box) -> None:
    """Counts of all tokens that are divided by their own sum are shares of one."""
    if isinstance(op, ast.Div):
        more = {ALPHABET, ALONE} - a.marks
        out.marks -= {SUMMED, ALPHABET, ALONE} if SUMMED in b.marks else more


def _is_run(value: Box) -> bool:
    """Whether a value is a piece of the stream itself, which a container merely hands on."""
    run = value.pos
    if run is None or not is_token(value) or run.ndim != 1 or run.size < _RUN:
        return False
    return bool((run[1:] - run[:-1] == 1).all())


def tokens_in(value: Any) -> list[Box]:
    """The shadow values in a container, more of them than `collect` looks at."""
    if isinstance(value, (list, tuple)) and len(value) > 64:
        return [b for item in value[:_MOST] for b in collect(item, 2)]
    return collect(value)
