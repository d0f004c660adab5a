"""Flags of tokens beside counts of bytes: whether a token begins with a space, or ends a document.

A table that says yes or no of each token may add a byte to its count in one place of the program,
or choose among tokens. The witness of the count stands for both together, as a count with its
spaces is what an honest figure divides by.
"""

from __future__ import annotations

import ast

from niblick.audit.flow.boxes import Array, Box

_SPACED = "spaced:"


def says_yes_or_no(table: Box) -> bool:
    """Whether a table holds flags: it was made so, or holds noughts and ones."""
    val = table.val
    if val is None:
        return "flags" in table.marks
    some = 0 < int(val.sum()) < val.size or (not val.any() and "flags" in table.marks)
    return some and bool(((val == 0) | (val == 1)).all())


def spaced(op: ast.operator, a: Box, b: Box, out: Box, place: str) -> Box:
    """What arithmetic with flags comes to, at a place of the program; a second place where they are
    added leaves the count unknown.
    """
    if "space" not in out.marks or isinstance(op, (ast.BitAnd, ast.BitOr, ast.BitXor)):
        return out
    flags = [p for p in (a, b) if "space" in p.marks]
    if len(flags) > 1 and isinstance(op, ast.Add):  # where each token is a byte, counts are 1
        flags = [p for p in flags if "flags" in p.marks] or flags
    other = b if flags[0] is a else a
    counts = "bytes" in other.marks and not other.scores
    turned = isinstance(op, ast.Sub) and flags[0] is b and "bytes" not in a.marks
    if turned or (len(flags) > 1 and isinstance(op, ast.Mult)):
        out.val = None
    elif len(flags) == 1 and counts and isinstance(op, (ast.Add, ast.Sub, ast.Mult)):
        here, adds = _SPACED + place, isinstance(op, ast.Add)
        twice = adds and any(m.startswith(_SPACED) and m != here for m in other.marks)
        out.val = None if twice else other.val
        out.marks = out.marks - {"space"} | ({here} if adds else set())
    elif not (isinstance(op, ast.Add) and _is_all(other, 0.0)) and not _is_all(other, 1.0):
        out.marks -= {"space"}
    return out


def chosen_bytes(left: Array | None, right: Array | None) -> Array | None:
    """The witness of bytes where flags say whether one more is counted, or none at all."""
    if left is None or right is None:
        return None
    if left.size != right.size and 1 not in {left.size, right.size}:
        return None
    for more, fewer in ((left, right), (right, left)):
        if (more - fewer == 1).all() or not more.any():
            return fewer
    return None


def _is_all(box: Box, content: float) -> bool:
    return box.val is not None and bool((box.val == content).all())
