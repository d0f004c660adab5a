"""Operations that change a tensor in place."""

from __future__ import annotations

import ast
from typing import Any

import numpy as np

from niblick.audit.flow.boxes import (
    Box,
    collect,
    elementwise,
    is_token,
    masked,
    merge,
    replace_content,
)
from niblick.audit.flow.scoring import Scoring
from niblick.audit.words import words


def _by_name(text: str) -> dict[str, Any]:
    """Operators by the names of functions; each part of a text is a node's name and these."""
    parts = (part.split() for part in text.split(","))
    return {name: getattr(ast, kind) for kind, *names in parts for name in names}


OPERATORS: dict[str, type[ast.operator]] = _by_name(
    "Add add, Sub sub subtract, Mult mul multiply, Div div divide true_divide, FloorDiv"
    " floor_divide, Mod mod fmod remainder, Pow pow power float_power, BitXor bitwise_xor, BitOr"
    " bitwise_or, BitAnd bitwise_and, LShift left_shift bitwise_left_shift, RShift right_shift"
    " bitwise_right_shift"
)
COMPARISONS: dict[str, type[ast.cmpop]] = _by_name(
    "Eq eq equal, NotEq ne not_equal, Lt lt less, LtE le less_equal, Gt gt greater, GtE ge"
    " greater_equal"
)
"""Functions that are operators by name; with an underscore behind it, they change what they are
called on.
"""
_WRITES = words("copyto put place putmask put_along_axis")
"""Functions that change their first argument."""
_SAME = words("requires_grad_ detach_ share_memory_ retain_grad_")
"""Methods named like those that change a value, but which do not."""

_RESET = words(
    "zero_ fill fill_ normal_ uniform_ zeros_ ones_ constant_ orthogonal_ kaiming_uniform_"
    " xavier_uniform_ kaiming_normal_ trunc_normal_ xavier_normal_"
)

_MOST_ROWS = 1 << 28

_KEYED = words(
    "scatter_add_ index_add_ scatter_ index_put_ index_copy_ index_fill_ index_reduce_ put_"
    " scatter_reduce_ put put_along_axis"
)


def changes(name: str) -> bool:
    """Whether a method changes what it is called on, by its name."""
    return name.endswith("_") and not name.endswith("__") and name not in _SAME


class InPlace(Scoring):
    """In-place operations on values and on learnable leaves."""

    def in_place(
        self, name: str, first: Box, rest: list[Any], named: dict[str, Any], node: ast.AST
    ) -> Box:
        return self.shared(self.changed(name, first, rest, named, node))

    def changed(
        self, name: str, first: Box, rest: list[Any], named: dict[str, Any], node: ast.AST
    ) -> Box:
        first.cells = None
        if name == "clamp_" and not first.live:
            first.val = self.clipped(first, rest, named)
            return first
        if first.live:
            if name in _RESET:
                self.reset_leaves(first.roots)
            else:
                given = [b for a in rest for b in collect(a)]
                held = Box(held=self.written(given)) if name in _KEYED else Box()
                self.update_param(first, [*given, held], node, replace=name in {"copy_", "set_"})
            return first
        sources = self.frozen([b for a in rest for b in collect(a)])
        if name in _KEYED and any(is_token(b) for b in sources):
            if name == "scatter_" and self.row_aligned(first, sources):
                return first
            first.table |= 1
            first.val = None
            first.held |= self.written(sources)
            return first
        if name in _RESET:
            first.held, first.marks = 0, first.marks - {"flags"}
            first.val = (
                np.zeros_like(first.val) if name == "zero_" and first.val is not None else None
            )
            first.pos = first.key = None
            return first
        operator = OPERATORS.get(name.removesuffix("_"))
        if operator is not None and len(rest) == 1 and not named:
            added = isinstance(rest[0], Box) and operator is ast.Add
            right = self.added_up(sources[0], node) if added else rest[0]
            replace_content(first, self.binary(operator(), first, right, node))
            return first
        return self.combined(name, first, sources)

    def combined(self, name: str, first: Box, sources: list[Box]) -> Box:
        """A value that takes on what an in-place operation makes of it and others."""
        whole = sources[0] if sources else Box()
        mixed = whole if name == "copy_" else elementwise([self.frozen([first])[0], *sources])
        if name == "masked_fill_" and sources:
            return masked(
                first, Box(val=None if sources[0].val is None else ~sources[0].val.astype(bool))
            )
        self.check_report(first, merge(sources), mixed)
        for field in words("pos key deps targets seen held roots scores marks nll"):
            setattr(first, field, getattr(mixed, field))
        first.val = mixed.val if name == "copy_" else None
        return first

    def row_aligned(self, first: Box, sources: list[Box]) -> bool:
        """Whether a write puts one entry, known by its position, into each row of a fresh array;
        the array then remembers that position row by row.
        """
        key = next((s for s in sources if is_token(s)), None)
        shape = first.shape
        if first.table or key is None or key.pos is None or not shape:
            return False
        rows = key.pos.max(axis=-1) if key.pos.ndim == len(shape) else key.pos
        sizes = tuple(int(s or 0) for s in shape)
        if None in shape or rows.shape != sizes[:-1] or rows.size * sizes[-1] > _MOST_ROWS:
            return False
        first.pos = np.broadcast_to(rows[..., None], sizes)
        first.val, first.held = None, first.held | key.held
        return True

    def reset_leaves(self, roots: frozenset[int]) -> None:
        """A fresh start: what these leaves had learnt is overwritten (a module's only if it is an
        adapter).
        """
        for root in roots:
            if self.leaves[root].kind != "module" or "adapter" in self.leaves[root].marks:
                self.leaves[root].seen = 0
