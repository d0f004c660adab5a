"""Operations that make, reshape, select from or join shadow tensors."""

from __future__ import annotations

import ast
import math
from typing import Any

import numpy as np

from niblick.audit.flow.access import Access
from niblick.audit.flow.boxes import (
    MAX_ELEMENTS,
    NO_MARKS,
    Array,
    Box,
    elementwise,
    is_token,
    known,
    masked,
    merge,
    shaped,
    side_by_side,
    snapshot,
    target_bits,
)
from niblick.audit.flow.joining import pieces, times_of
from niblick.audit.flow.keeping import ALONE, ALPHABET
from niblick.audit.flow.lengths import length_of
from niblick.audit.flow.narrowing import ALTERED, moved
from niblick.audit.flow.objects import Dotted
from niblick.audit.flow.spaces import chosen_bytes
from niblick.audit.words import words

_UNKNOWN = words("empty full rand randn new_empty new_full randint normal")
_ALONG = words("gather take_along_dim take_along_axis")
_FILLED = {"zeros": 0, "ones": 1, "new_zeros": 0, "new_ones": 1}
CREATE: dict[str, int | None] = {**dict.fromkeys(_UNKNOWN), **_FILLED}
LIKE = {f"{name}_like": CREATE[name] for name in words("zeros ones empty full rand randn")}


def _reshaped(name: str, box: Box, rest: list[Any]) -> Box:
    """What `reshape` and its kind make of a value."""
    sizes = rest[0] if rest and isinstance(rest[0], (tuple, list)) else rest
    shape: tuple[Any, ...] = (
        tuple(_size(s) for s in sizes) if sizes and name in {"reshape", "view"} else (-1,)
    )
    known_sizes = [s for s in shape if isinstance(s, int) and s >= 0]
    misfit = None not in shape and box.pos is not None and not _fits(box.pos, shape)
    if box.rows and len(box.rows) == len(shape) and (misfit or not known_sizes):
        shape = tuple(box.rows)
    elif None in shape:
        shape = (-1, *known_sizes)
    if name == "flatten" and rest:
        shape = (-1,)
    like = known(rest[0]).shape if rest and name.endswith("_as") else None
    if like is not None and None not in like:
        shape = like
    wanted: Any = shape
    out = shaped(box, lambda a: a.reshape(wanted))
    out.live = box.live
    flat = shape == (-1,)
    out.rows = (box.shape if len(box.shape or ()) > 1 else box.rows) if flat else None
    return out


class Shapes(Access):
    """Operations that make, reshape, select from or join shadow tensors."""

    def make(self, name: str, args: list[Any], named: dict[str, Any]) -> Any:
        """New tensors: zeros, ones, full and the random ones."""
        shape: tuple[int | None, ...] | None
        fill: float | None
        if name in LIKE:
            base = known(args[0])
            shape, fill = base.shape, LIKE[name]
        else:
            shape, fill = (
                _shape_of(
                    args if not (args and isinstance(args[0], (tuple, list))) else args[0], named
                ),
                CREATE[name],
            )
            if name in {"full", "new_full"}:
                sizes = args[0] if args else named.get("size", named.get("shape"))
                shape = _shape_of(sizes if isinstance(sizes, (tuple, list)) else [sizes], {})
                value = args[1] if len(args) > 1 else named.get("fill_value")
                fill = value if isinstance(value, (int, float)) else None
            if name == "randint":
                shape = None
        out = Box(shape=shape, marks=frozenset({"zeros"}) if fill == 0 else NO_MARKS)
        flags = boolean(args, named)
        if fill == 0 and flags:
            out.marks |= {"flags"}
        if shape is not None and None not in shape and fill is not None:
            sizes = tuple(int(s or 0) for s in shape)
            fill = bool(fill) if flags else fill
            out.val = np.full(sizes, fill) if math.prod(sizes) <= 1_000_000 else None
        if named.get("requires_grad") is True:
            self.make_leaf(out, name)
        return out

    def make_leaf(self, box: Box, name: str) -> Box:
        box.roots = box.roots | {self.new_leaf("tensor", name)}
        box.live, box.val, box.nll = True, None, False
        box.marks |= {"param"}
        return box

    def clipped(self, box: Box, rest: list[Any], named: dict[str, Any]) -> Array | None:
        """Known content after a clamp with known bounds."""
        low = named.get("min", named.get("a_min", rest[0] if rest else None))
        high = named.get("max", named.get("a_max", rest[1] if len(rest) > 1 else None))
        bounds: list[Any] = [
            None if v is None else _size(v) if not isinstance(v, float) else v for v in (low, high)
        ]
        lost = any(
            isinstance(v, Box) and b is None for v, b in zip((low, high), bounds, strict=True)
        )
        if box.val is None or lost or bounds == [None, None]:
            return None
        return np.asarray(np.clip(box.val, *bounds))

    def select(self, name: str, args: list[Any], named: dict[str, Any], node: ast.AST) -> Box:
        boxes = [
            known(a) for a in (*args, *named.values()) if isinstance(a, (Box, list, np.ndarray))
        ]
        if len(boxes) < 2:
            return merge(self.frozen(boxes))
        source, index = (boxes[1], boxes[0]) if name == "embedding" else (boxes[0], boxes[-1])
        if name in {"masked_select", "compress"} or not is_token(index) or "index" in index.marks:
            out = snapshot(self.frozen([source])[0], val=None)
            out.marks |= {ALONE} if ALPHABET in source.marks and name in _ALONG else set()
            row = index.val is not None and index.val.dtype.kind in "iu" and index.val.ndim == 1
            taken = row and name in {"index_select", "take"}
            return shaped(source, lambda a: a[index.val]) if taken else out
        return self.looked_up(source, [index], [index], node)

    def reshaping(self, name: str, first: Box, args: list[Any], named: dict[str, Any]) -> Any:
        rest = args[1:]
        box = self.frozen([first])[0] if not first.live else first
        if name in {"reshape", "view", "flatten", "ravel", "view_as", "reshape_as"}:
            return _reshaped(name, box, rest)
        if name == "unsqueeze" and rest and isinstance(rest[0], int):
            return shaped(box, lambda a: np.expand_dims(a, rest[0]))
        if name in {"squeeze"}:
            axis = rest[0] if rest and isinstance(rest[0], int) else None
            return shaped(
                box, lambda a: np.squeeze(a, axis) if axis is None or a.shape[axis] == 1 else a
            )
        if name in {"transpose", "swapaxes"} and len(rest) == 2:
            return shaped(box, lambda a: np.swapaxes(a, rest[0], rest[1]))
        if name in {"t", "permute"}:
            order = rest[0] if rest and isinstance(rest[0], (tuple, list)) else rest
            return shaped(box, lambda a: a.transpose(tuple(order)) if order else a.T)
        times = (
            times_of(box, [_size(s) for s in _flat(rest)])
            if name in {"repeat", "tile"} and "numpy" not in box.marks
            else ()
        )
        if times:
            return shaped(box, lambda a: np.tile(a, times))
        if name in {"expand", "expand_as", "broadcast_to", "repeat", "tile"}:
            return snapshot(box, shape=None, val=None)
        if name == "roll":
            by = rest[0] if rest else named.get("shifts", 0)
            out = shaped(box, lambda a: np.roll(a, by))
            return out if isinstance(by, int) and by >= 0 else moved(out)
        if name in {"flip", "fliplr"}:
            return moved(shaped(box, lambda a: np.flip(a)))
        if name in {"narrow"} and len(rest) == 3 and all(isinstance(r, int) for r in rest):
            return shaped(
                box, lambda a: np.take(a, range(rest[1], rest[1] + rest[2]), axis=rest[0])
            )
        if name == "as_strided" and len(rest) > 1:
            places = _strided(*rest[:3])
            if places is not None:
                return shaped(box, lambda a: a.reshape(-1)[places])
        if name == "unfold" and len(rest) == 3 and box.pos is not None and box.pos.ndim == 1:
            size, step = _size(rest[1]), _size(rest[2])
            if size and step and size <= (box.shape or (0,))[0]:  # type: ignore[operator]
                return shaped(
                    box, lambda a: np.lib.stride_tricks.sliding_window_view(a, size)[::step]
                )
        return self.joining(name, box, args, named)

    def joining(self, name: str, box: Box, args: list[Any], named: dict[str, Any]) -> Any:
        if name in {"cat", "concatenate", "concat", "stack", "hstack", "vstack"} and isinstance(
            args[0], (list, tuple)
        ):
            parts = self.frozen([known(a) for a in args[0]])
            axis = named.get("dim", named.get("axis", args[1] if len(args) > 1 else 0))
            if any(p.nll for p in parts) and any(p.roots and not p.scores for p in parts):
                parts = [snapshot(p, marks=p.marks | {"uneven"}) for p in parts]
            if len(parts) == 1 and name not in {"stack", "vstack"}:
                return parts[0]
            out = side_by_side(
                parts, axis if isinstance(axis, int) else 0, name in {"stack", "vstack"}
            )
            if out.scores and any(p.roots and not p.scores for p in parts):
                out.marks |= {"unpicked"}
            return out
        if name == "one_hot":
            classes = _size(args[1]) if len(args) > 1 else None
            if box.pos is None or not classes or box.pos.size * classes > 4_000_000:
                return merge([box])
            plain = snapshot(box, val=None)
            return shaped(plain, lambda a: np.repeat(a[..., None], classes, -1))
        if name == "where":
            return self.where_call(args)
        if name in {"nonzero", "argwhere", "flatnonzero"}:
            return self.nonzero(box, name, named)
        if name in {"arange", "linspace"}:
            ends: list[Any] = [_size(a) for a in args if not isinstance(a, Dotted)]
            whole = name == "arange" and all(isinstance(e, int) for e in ends)
            if whole and abs(ends[-1] if len(ends) < 3 else ends[1]) < 10**7:
                return known(np.arange(*ends))
            return Box(marks=frozenset({"index"}))
        return self.content(name, box, args)

    def content(self, name: str, box: Box, args: list[Any]) -> Any:
        """Plain content of a value, its size, and what is counted or picked from it."""
        if name in {"item", "tolist"}:
            return self.plain(name, box)
        if name in {"numel", "__len__"}:
            if box.pos is None and (box.deps or box.targets) and box.shape is None:
                return Box(shape=(), val=np.asarray(1), marks=frozenset({"guess"}))
            return (
                Box(shape=())
                if box.shape is None or None in box.shape
                else length_of(box, int(np.prod([int(s or 0) for s in box.shape])))
            )
        if name in {"size", "dim", "ndimension"}:
            return self.size(box, args, name)
        if name in {"unique", "sort", "argsort", "topk", "cummax", "cummin"}:
            out = merge([box])
            out.held |= self.written([box])
            return (out, snapshot(out)) if name in {"sort", "topk", "cummax", "cummin"} else out
        if name == "unbind" and args[1:] in ([], [0]) and box.shape:
            return self.iterate(box, None)
        if name in {"chunk", "split", "tensor_split", "array_split", "unbind"}:
            return (
                [shaped(box, lambda a: a), shaped(box, lambda a: a)]
                if box.pos is None
                else pieces(box, name, args) or self.iterate(box, None)[:8]
            )
        if name in {"bincount", "histogram"}:
            out = merge([box], table=1)
            out.held |= self.written([box])
            out.marks |= {"count"}
            return out
        return NotImplemented

    def plain(self, name: str, box: Box) -> Any:
        """Python's own value of a tensor, where all of it is known."""
        rows = box.shape and box.shape[0] is not None
        if name == "tolist" and rows and (box.pos is not None or box.val is not None):
            return self.iterate(box, None)
        unmarked = not (box.roots or box.deps or box.scores or box.marks & {"bytes", "guess"})
        unplaced = box.pos is None and box.key is None
        if box.val is not None and box.val.size == 1 and unmarked and unplaced:
            return box.val.reshape(-1)[0].item()
        return self.scalar(box) if name == "item" else snapshot(box)

    def scalar(self, box: Box) -> Box:
        """A value that the program takes for one number; scores of tokens were their mean."""
        out = snapshot(box, shape=(), marks=box.marks | {"scalar"})
        if box.scores and box.val is not None and box.val.size > 1:
            out.targets |= target_bits(box)
            out.val, out.pos = np.asarray(box.val.mean()), None
        return out

    def size(self, box: Box, args: list[Any], name: str) -> Any:
        if name != "size":
            return Box(shape=()) if box.shape is None else len(box.shape)
        if box.shape is None:
            return Box(shape=())
        sizes = tuple(Box(shape=()) if s is None else length_of(box, s) for s in box.shape)
        if len(args) > 1 and isinstance(args[1], int):
            return sizes[args[1]] if -len(sizes) <= args[1] < len(sizes) else Box(shape=())
        return sizes

    def where_call(self, args: list[Any]) -> Any:
        if len(args) < 3:
            return self.nonzero(known(args[0]), "where", {"as_tuple": True})
        condition, left, right = (self.frozen([known(a)])[0] for a in args[:3])
        if condition.val is not None and condition.pos is None:
            if left.pos is not None and right.pos is None:
                return masked(left, condition)
            if right.pos is not None and left.pos is None:
                return masked(right, Box(val=~condition.val.astype(bool)))
        out = elementwise([left, right])
        if "sized" in condition.marks and is_token(out):
            out.marks |= {ALTERED}
        if condition.val is not None and left.val is not None and right.val is not None:
            out.val = _where(condition.val, left.val, right.val)
        elif "space" in condition.marks:
            out.val = chosen_bytes(left.val, right.val)
        elif left.val is not None and right.val is not None and left.nll and right.nll:
            out.val = left.val if np.array_equal(left.val, right.val) else None
        if condition.scores and out.scores:
            self.warp(out, "scores are chosen by what they are")
        if "tested" in condition.marks and not out.scores:
            out.marks |= {"tested"}
            out.targets |= target_bits(condition)
        if condition.key is not None and out.key is None:
            out.key = condition.key
        return out

    def nonzero(self, box: Box, name: str, named: dict[str, Any]) -> Any:
        marks = frozenset({"index"})
        found = [Box(marks=marks)]
        if box.val is not None and box.val.ndim:
            found = [Box(shape=i.shape, val=i, marks=marks) for i in np.nonzero(box.val)]
        elif box.shape is not None and len(box.shape) == 1 and box.shape[0] is not None:
            found = [Box(shape=box.shape, val=np.arange(box.shape[0]), marks=marks)]
        if name == "flatnonzero":
            return found[0]
        if name != "nonzero" or named.get("as_tuple") or "numpy" in box.marks:
            return tuple(found)
        if len(found) == 1 and found[0].val is not None:
            column = found[0].val.reshape(-1, 1)
            return Box(shape=column.shape, val=column, marks=marks)
        return found[0]


def boolean(args: list[Any], named: dict[str, Any]) -> bool:
    """Whether a call says that what it makes holds true or false."""
    kinds = [v.name.rpartition(".")[2] for v in (*args, *named.values()) if isinstance(v, Dotted)]
    return any(kind in {"bool", "bool_"} for kind in kinds)


def _fits(array: Array, shape: tuple[int, ...]) -> bool:
    """Whether an array may be given a shape; one of a program that runs does not fit by mistake."""
    size = int(np.prod([s for s in shape if s >= 0]))
    return array.size == size or (-1 in shape and size > 0 and array.size % size == 0)


def _strided(sizes: Any, strides: Any, start: Any = 0) -> Array | None:
    """The places in memory that a view by strides shows."""
    ends, ways = ([_size(v) for v in part] for part in (sizes, strides))
    first = _size(start)
    if len(ends) != len(ways) or None in (*ends, *ways, first):
        return None
    if math.prod(int(s or 0) for s in ends) > MAX_ELEMENTS:
        return None
    out = np.asarray(first)
    for side, way in zip(ends, ways, strict=True):
        out = out[..., None] + np.arange(int(side or 0)) * int(way or 0)
    return out


def _where(condition: Array, left: Array, right: Array) -> Array | None:
    try:
        return np.where(condition != 0, left, right)
    except ValueError:
        return None


def _shape_of(sizes: Any, named: dict[str, Any]) -> tuple[int | None, ...] | None:
    if not isinstance(sizes, (tuple, list)):
        return None
    if not sizes and "size" in named:
        sizes = named["size"] if isinstance(named["size"], (tuple, list)) else [named["size"]]
    out = [s for s in sizes if not isinstance(s, Dotted)]
    return tuple(_size(s) for s in out)


def _flat(sizes: list[Any]) -> list[Any]:
    """Sizes given one by one or as one sequence."""
    return list(sizes[0]) if sizes and isinstance(sizes[0], (tuple, list)) else sizes


def _size(value: Any) -> int | None:
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, Box) and value.val is not None and value.val.size == 1:
        return int(value.val.reshape(-1)[0])
    return None
