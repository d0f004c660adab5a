"""One value that stands for either of two, where the program may have taken either branch; values
laid side by side, and taken apart.
"""

from __future__ import annotations

import math
from itertools import pairwise
from operator import itemgetter
from typing import Any

import numpy as np

from niblick.audit.flow.boxes import MAX_ELEMENTS, STREAM, Box, known, merge, shaped, snapshot
from niblick.audit.flow.objects import Class, Function, Instance, Module, Namespace


def joined(left: Any, right: Any) -> Any:
    """One value that stands for either of two."""
    if left is right:
        return left
    if (
        isinstance(left, (Function, Class, Module, Instance, Namespace, list, dict))
        and right is None
    ):
        return left
    if left is None and not isinstance(right, (Box, int, float, str)):
        return right
    for one, other in ((left, right), (right, left)):
        if isinstance(one, (Instance, Function)) and isinstance(other, Box) and blank(other):
            return one
    if isinstance(left, Box) or isinstance(right, Box):
        a, b = known(left), known(right)
        if (
            a.shape == b.shape
            and a.pos is not None
            and b.pos is not None
            and a.pos.shape == b.pos.shape
        ):
            out = snapshot(a, pos=np.maximum(a.pos, b.pos), val=_common(a, b))
            extra = merge([b])
            out.seen |= b.seen
            out.held |= b.held
            out.roots |= extra.roots
            out.scores |= extra.scores
            out.marks |= extra.marks
            return out
        keep = a if a.pos is not None else b
        out = merge([a, b])
        if keep.pos is not None:
            learnt = {n: getattr(out, n) for n in ("seen", "held", "roots", "scores", "marks")}
            out = snapshot(keep, val=None, **learnt)
        elif a.shape == b.shape:
            out.shape, out.val = a.shape, _common(a, b)
        out.live = a.live or b.live
        return out
    try:
        if type(left) is type(right) and left == right:
            return left
    except (TypeError, ValueError):
        return left
    if isinstance(left, (int, float, str, bool, type(None))) and isinstance(
        right, (int, float, str, bool, type(None))
    ):
        return Box(shape=(), options=(left, right) if left is None or right is None else ())
    if isinstance(left, (list, tuple, dict)) and isinstance(right, (list, tuple, dict)):
        return max(left, right, key=len)
    return left if left is not None else right


def blank(box: Box) -> bool:
    """Whether a value is unknown and holds nothing of a stream, a model or a score."""
    held = box.pos is not None or box.deps or box.targets or box.held or box.key is not None
    learnt = box.seen or box.roots or box.scores or box.nll or box.live
    return not (held or learnt or box.table or box.val is not None) and box.marks <= {
        "scalar",
        "maybe_none",
    }


def _common(a: Box, b: Box) -> Any:
    """The content of two values where it is the same but for rounding; infinity, with which a
    search for the smallest begins, yields to the other.
    """
    if a.val is None or b.val is None or a.val.shape != b.val.shape:
        return None
    for one, other in ((a, b), (b, a)):
        if one.val is not None and one.val.dtype.kind == "f" and np.isinf(one.val).all():
            return other.val
    floats = a.val.dtype.kind == b.val.dtype.kind == "f"
    same = np.allclose(a.val, b.val, 1e-9, 0.0) if floats else np.array_equal(a.val, b.val)
    return a.val if same else None


def pieces(box: Box, name: str, args: list[Any]) -> list[Box]:
    """What splitting along the first dimension gives: the first piece, the last, and one that
    stands for all between, so that a sum over the pieces is whole; empty where this is not it.
    """
    sizes = args[1:] if args and args[0] is box else args
    if name == "unbind" or box.pos is None or len(sizes) != 1 or not isinstance(sizes[0], int):
        return []
    rows, size = box.pos.shape[0] if box.pos.ndim else 0, sizes[0]
    if size < 1 or not rows:
        return []
    size = size if name == "split" else -(-rows // size)
    first, last = min(size, rows), (rows - 1) // size * size
    cuts = sorted({0, first, max(last, first), rows})
    return [shaped(box, itemgetter(slice(*ends))) for ends in pairwise(cuts)]


def view(out: Box, box: Box) -> Box:
    """A value that shares the memory of another one, or of what that is a view of."""
    if out is not box and not box.live:
        out.base = box if box.base is None else box.base
    return out


def times_of(box: Box, sizes: list[int | None]) -> tuple[int, ...]:
    """How often a value of known size is repeated along each dimension; empty if not known."""
    plain = [s for s in sizes if isinstance(s, int) and 0 < s <= STREAM]
    if box.shape is None or len(plain) < len(sizes):
        return ()
    size = math.prod(int(s or 0) for s in (*box.shape, *plain))
    return tuple(plain) if size <= MAX_ELEMENTS else ()
