"""Subscripts of the interpreted program as numpy takes them."""

from __future__ import annotations

import math
from itertools import islice
from typing import Any

import numpy as np

from niblick.audit.flow.boxes import (
    MAX_ELEMENTS,
    STREAM,
    Array,
    Box,
    collect,
    known,
    merge,
    shaped,
    snapshot,
    witness,
)
from niblick.audit.flow.joining import view
from niblick.audit.flow.paths import path_kind

RAW = "raw"
"""The mark of a file of tokens as its bytes, with a header before them."""
HEADER = 1024
"""Bytes of that header."""
TEXT, OCTETS = "text", "octets"
"""The marks of tokens that were decoded into text, and of that text as bytes."""
SMALL, _MANY, _LARGE = 64, 512, 1_000_000
"""Entries: counts of tokens need more, a few of a table, no vocabulary has as many."""


def header(count: int) -> Box:
    """The first numbers of a file of tokens, as the public data have them."""
    numbers = np.zeros(count, dtype=np.int64)
    numbers[:3] = (20240520, 1, STREAM)[:count]
    return Box(shape=(count,), val=numbers, marks=frozenset({"numpy"}))


def as_text(tokens: Box) -> Box:
    """The text of tokens of the stream."""
    return snapshot(tokens, val=None, marks=tokens.marks | {TEXT})


def octets_of(box: Box) -> Box:
    """How many bytes a text of tokens has."""
    each = witness(box.pos)
    content = None if each is None else np.asarray(each.sum())
    return merge([box], shape=(), val=content, marks=frozenset({"bytes"}))


def as_bytes(box: Box) -> Box:
    """What reading a file gives, as its bytes where it holds tokens."""
    tokens = box.marks & {"val", "train"} and box.shape == (STREAM,)
    return snapshot(box, marks=box.marks | {RAW}) if tokens else box


def of_bytes(box: Box, key: Any) -> Box:
    """A piece of a file that was read as bytes: its header, or the tokens after it."""
    if isinstance(key, slice) and key.start in {None, 0} and isinstance(key.stop, int):
        return header(max(1, key.stop // 4)) if 0 < key.stop <= HEADER else box
    return snapshot(box, marks=box.marks - {RAW}) if isinstance(key, slice) else merge([box])


def subscript(part: Any) -> Any:
    """A subscript as numpy takes it; None where it is not known."""
    if part is None or part is Ellipsis or isinstance(part, (int, np.integer)):
        return np.newaxis if part is None else part
    if isinstance(part, slice):
        ends = [plain_index(p) for p in (part.start, part.stop, part.step)]
        return None if any(isinstance(p, Box) for p in ends) else slice(*ends)
    if isinstance(part, Box):
        if "guess" in part.marks:
            return None
        if part.val is not None and part.val.dtype.kind in "iub":
            return part.val if part.val.ndim else part.val.item()
        if part.val is not None and part.val.dtype.kind == "f" and part.val.size == 1:
            return int(part.val.reshape(-1)[0])
        return None
    if isinstance(part, (list, tuple)) and all(isinstance(p, (int, np.integer)) for p in part):
        return np.asarray(part, dtype=np.int64)
    return None


def taken(array: Array, index: tuple[Any, ...]) -> Array:
    """`array[index]`; `ValueError` where that would be more than may be kept of a value."""
    arrays = [part for part in index if isinstance(part, np.ndarray)]
    if arrays and array.size > MAX_ELEMENTS:
        raise ValueError("too many elements")
    chosen = [part for part in arrays if part.dtype.kind in "iu"]
    if chosen and Ellipsis not in [part for part in index if not isinstance(part, np.ndarray)]:
        own = [part for part in index if part is not None]
        size = max(part.size for part in chosen) * math.prod(array.shape[len(own) :])
        for part, side in zip(own, array.shape, strict=False):
            size *= len(range(*part.indices(side))) if isinstance(part, slice) else 1
        if size > MAX_ELEMENTS:
            raise ValueError("too many elements")
    return array[index]  # type: ignore[no-any-return]


def plain_index(part: Any) -> Any:
    """An index as a plain integer where it is known."""
    if isinstance(part, Box):
        one = part.val is not None and part.val.size == 1 and "guess" not in part.marks
        return int(part.val.reshape(-1)[0]) if one else part  # type: ignore[union-attr]
    return int(part) if isinstance(part, (float, np.integer)) else part


def weighs(box: Box) -> bool:
    """Whether a value is losses or counts of bytes, of which a part of unknown size is as one."""
    return bool(box.scores) or "bytes" in box.marks


def any_of(items: list[Any]) -> Any:
    """One item that stands for any of a list."""
    boxes = collect(items)
    if len(boxes) == len(items):
        out = merge(boxes)
        out.live = any(b.live for b in boxes)
        out.table = max((b.table for b in boxes), default=0)
        return out
    return items[0]


def split_marks(key: Any) -> frozenset[str]:
    """The marks of what an unknown collection holds under the name of the validation split."""
    return (
        frozenset({"validation"})
        if isinstance(key, str) and path_kind(key) == "val"
        else frozenset()
    )


def row(box: Box, i: int) -> Any:
    """One row of a value; a plain number where that is all it is."""
    if (
        box.val is not None
        and box.val.ndim == 1
        and box.pos is None
        and box.key is None
        and not box.roots
        and not box.deps
        and "bytes" not in box.marks
    ):
        return box.val[i].item()
    return view(shaped(box, lambda a: a[i]), box)


def table_of(holder: dict[Any, Any]) -> Box | None:
    """A table of numbers, one for each token, that a dictionary holds; None where it is another."""
    numbers = list(islice(holder.values(), _MANY))
    if len(numbers) > SMALL and all(type(v) in {int, float} for v in numbers):
        return known(numbers)
    return Box() if len(numbers) > 1 and all(map(_untold, numbers)) else None


def _untold(value: Any) -> bool:
    """Whether a value is an unknown number that is none of a count or a file."""
    if not isinstance(value, Box) or value.marks & {"count", "file", "train"}:
        return False
    return not (value.pos is not None or value.deps or value.roots or value.scores or value.held)


def numbers_of(box: Box) -> Box:
    """The numbers of a row of which some entries have become sums."""
    return Box(shape=box.shape, val=box.val, marks=box.marks & {"zeros"})


def is_large(box: Box) -> bool:
    """Whether an array has more entries than any vocabulary."""
    sizes = box.shape or ()
    return None not in sizes and math.prod(int(s or 0) for s in sizes) > _LARGE
