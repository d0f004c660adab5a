"""Shadow values: what a tensor of the reviewed program depends on, element by element where that is
known.

The engine runs a program on shadows, never on data. A synthetic validation stream of `STREAM`
tokens stands for the real one; a `Box` remembers which stream positions an element came from
(`pos`), which positions the parameters behind it had been trained on (`seen`), which positions
other state holds that it was read from (`held`: counts, dictionaries, files), and which learnable
leaves it was computed from (`roots`). Sets of positions are Python integers used as bit sets.

Losses and byte counts carry a *witness*: made-up content (`val`), the same number for the loss of a
position as for its bytes. Whatever positions a run adds up, an honest figure of bits per byte then
comes out as 1 / ln 2 (or 1, in nats); a scale, a clip or a dropped loss shows as another number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

STREAM = 262_145
BOS = 1
Array = NDArray[Any]
Shape = tuple[int | None, ...]
MAX_ELEMENTS = 1 << 22
WITNESS: Array = ((np.arange(STREAM + 1) * 2_654_435_761 >> 7) % 4 + 1).astype(np.float64)
"""The made-up loss, and number of bytes, of each position: whole numbers from 1 to 4."""
GUESS = np.float64(2.5)
"""The witness of an unknown selection, as if it were one position."""
NONE: frozenset[int] = frozenset()
NO_MARKS: frozenset[str] = frozenset()


@dataclass(slots=True, eq=False)
class Box:
    """A shadow value. `pos[i]` is the newest stream position element i holds (-1: none), `val` its
    content if known, `key` the newest position inside the key a table was read with to get it;
    `live` values share the state of their leaves, others are snapshots; `options` are the plain
    values of which it is one, `rows` is the shape that a value had before it was laid flat, `base`
    is the value whose memory it shares, and `cells` are the entries of a short row of sums.
    """

    shape: Shape | None = None
    pos: Array | None = None
    val: Array | None = None
    key: Array | None = None
    deps: int = 0
    targets: int = 0
    seen: int = 0
    held: int = 0
    roots: frozenset[int] = NONE
    scores: frozenset[int] = NONE
    marks: frozenset[str] = NO_MARKS
    nll: bool = False
    live: bool = False
    table: int = 0
    options: tuple[Any, ...] = ()
    rows: Shape | None = None
    base: Box | None = None
    cells: dict[int, Box] | None = None


def core(array: Array) -> Array:
    """An array with one element along each dimension that merely repeats."""
    return array[tuple(slice(None) if stride else slice(1) for stride in array.strides)]


_CONTENT = attrgetter(*Box.__slots__[: Box.__slots__.index("live")])


def bits(positions: Array | None) -> int:
    """The bit set of the non-negative entries of an array of positions."""
    if positions is None or positions.size == 0:
        return 0
    positions = core(positions)
    high = min(int(positions.max(initial=-1)), STREAM)
    if high < 0:
        return 0
    low = int(positions.min())
    if low < 0 or high == STREAM:
        positions = np.minimum(positions[positions >= 0], STREAM)
        low = int(positions.min())
    flags = np.zeros(high - low + 1, dtype=np.uint8)
    flags[positions - low] = 1
    return int.from_bytes(np.packbits(flags, bitorder="little").tobytes(), "little") << low


def witness(positions: Array | None) -> Array | None:
    """The made-up content of losses or byte counts at `positions` (nought where there is none)."""
    if positions is None:
        return np.asarray(GUESS)
    if positions.size > MAX_ELEMENTS:
        return None
    return np.where(positions >= 0, WITNESS[np.minimum(positions, STREAM)], 0.0)


def mean_witness(positions: int) -> float:
    """The mean witness of a set of positions."""
    places = np.flatnonzero(
        np.unpackbits(
            np.frombuffer(positions.to_bytes((STREAM >> 3) + 8, "little"), dtype=np.uint8),
            bitorder="little",
        )
    )
    return float(WITNESS[np.minimum(places, STREAM)].mean()) if places.size else float(GUESS)


def depends(box: Box) -> int:
    """Every stream position a value depends on."""
    return box.deps | box.targets | bits(box.pos)


def target_bits(box: Box) -> int:
    """The positions whose log-probability a value is about."""
    return (bits(box.pos) if box.nll else 0) | box.targets


def is_token(box: object) -> bool:
    """Whether a value is (or holds) tokens of the validation stream, not something computed by a
    model.
    """
    return (
        isinstance(box, Box)
        and not box.roots
        and not box.nll
        and (box.pos is not None or bool(box.deps))
    )


def collect(value: Any, depth: int = 4) -> list[Box]:
    """Every `Box` inside a value, through containers, bounded in depth and number."""
    if isinstance(value, Box):
        return [value]
    if depth == 0:
        return []
    if isinstance(value, dict):
        items: Iterable[Any] = list(value.values())[:64]
    elif isinstance(value, (list, tuple, set)):
        items = list(value)[:64]
    else:
        inner = getattr(value, "shadow_parts", None)
        items = inner() if callable(inner) else ()
    return [box for item in items for box in collect(item, depth - 1)]


POSITIVE = "positive"
"""The mark of what is not negative; every operation drops it that does not keep it."""


def merge(boxes: Iterable[Box], **changes: Any) -> Box:
    """A shapeless value that depends on all of `boxes`."""
    out = Box()
    for box in boxes:
        out.deps |= depends(box)
        out.targets |= target_bits(box)
        out.seen |= box.seen
        out.held |= box.held
        out.roots |= box.roots
        out.scores |= box.scores
        out.marks |= box.marks
    out.marks -= {POSITIVE}
    for name, value in changes.items():
        setattr(out, name, value)
    return out


def known(value: Any) -> Box:
    """A plain number, list or array as a `Box` with known content."""
    if isinstance(value, Box):
        return value
    if isinstance(value, (int, float, bool, np.ndarray, np.generic)):
        array = np.asarray(value)
        return Box(shape=array.shape, val=array)
    if isinstance(value, (list, tuple)):
        if value and any(isinstance(v, (Box, list, tuple)) for v in value):
            return side_by_side([known(v) for v in value], 0, True)
        try:
            array = np.asarray(value)
        except (ValueError, TypeError):
            return merge(collect(value))
        return Box(shape=array.shape, val=array) if array.dtype != object else Box()
    return merge(collect(value))


def side_by_side(parts: list[Box], axis: int, stack: bool) -> Box:
    """Concatenation (or stacking) with everything known per element kept."""
    out = merge(parts)
    shapes = [p.shape for p in parts]
    out.nll = bool(parts) and all(p.nll for p in parts)
    if not parts or any(s is None or None in s for s in shapes):
        return out
    join = np.stack if stack else np.concatenate
    for name in ("pos", "val", "key"):
        arrays = [getattr(p, name) for p in parts]
        if all(a is None for a in arrays) or (name == "val" and any(a is None for a in arrays)):
            continue
        filled = [
            np.full([int(x or 0) for x in s or ()], -1) if a is None else a
            for a, s in zip(arrays, shapes, strict=True)
        ]
        try:
            joined = join(filled, axis=axis)
        except ValueError:
            continue
        setattr(out, name, joined)
        out.shape = joined.shape
    if out.nll and out.pos is not None:  # scores of these places, not of all
        out.targets = merge([Box(targets=p.targets) for p in parts]).targets
    return out


def broadcast(shapes: list[Shape | None]) -> Shape | None:
    """The broadcast of shapes with unknown sizes allowed; None where one is unknown or they do not
    fit.
    """
    if any(s is None for s in shapes):
        return None
    out: list[int | None] = []
    for sizes in zip(*[(1,) * (8 - len(s or ())) + tuple(s or ()) for s in shapes], strict=True):
        large = {s for s in sizes if s != 1}
        if len(large) > 1:
            return None
        out.append(large.pop() if large else 1)
    rank = max(len(s or ()) for s in shapes)
    return tuple(out[8 - rank :])


def _newest(arrays: list[Array], shape: Shape | None) -> Array | None:
    """Elementwise maximum of position arrays, broadcast to `shape` if that is fully known."""
    try:
        parts = [core(array) for array in arrays] if len(arrays) > 1 else arrays
        if math.prod(np.broadcast_shapes(*[core(part).shape for part in parts])) > MAX_ELEMENTS:
            return None
        out = parts[0]
        for other in parts[1:]:
            out = np.maximum(out, other)
        if shape is not None and None not in shape and out.shape != shape:
            out = np.broadcast_to(out, tuple(int(s or 0) for s in shape))
        return out
    except ValueError:
        return None


def elementwise(parts: list[Box], action: Callable[..., Any] | None = None) -> Box:
    """A value computed element by element; `action` gives its content when every part's content is
    known.
    """
    out = merge([])
    for part in parts:
        out.seen |= part.seen
        out.held |= part.held
        out.roots |= part.roots
        out.scores |= part.scores
        out.marks |= part.marks
        out.deps |= part.deps
        out.targets |= part.targets
    out.marks -= {POSITIVE}
    scored = [p for p in parts if p.nll]
    out.nll = bool(scored)
    if scored and not any("somewhere" in p.marks for p in scored):
        out.marks -= {"somewhere"}
    out.shape = broadcast([p.shape for p in parts])
    positions = [p.pos for p in scored or parts if p.pos is not None]
    if positions:
        out.pos = _newest(positions, out.shape)
        if out.pos is None:
            lost = merge(parts)
            out.deps |= lost.deps
            out.targets |= lost.targets
        elif out.shape is None:
            out.shape = out.pos.shape
    keys = [p.key for p in parts if p.key is not None]
    if keys:
        out.key = _newest(keys, None)
    if action is not None and all(p.val is not None for p in parts):
        try:
            with np.errstate(all="ignore"):
                out.val = np.asarray(action(*[p.val for p in parts]))
            if out.val.dtype == object or out.val.size > MAX_ELEMENTS:
                out.val = None
            elif out.shape is None:
                out.shape = out.val.shape
        except (TypeError, ValueError, OverflowError, ZeroDivisionError, MemoryError):
            out.val = None
    return out


def masked(box: Box, mask: Box) -> Box:
    """`box` with the elements where `mask` is known to be zero forgotten."""
    if mask.val is None or box.pos is None or box.pos.size > MAX_ELEMENTS:
        return box
    try:
        keep = np.broadcast_to(mask.val != 0, box.pos.shape)
    except ValueError:
        return box
    out = snapshot(box)
    out.pos = np.where(keep, box.pos, -1)
    if out.nll:
        out.targets = 0
    return out


def snapshot(box: Box, **changes: Any) -> Box:
    """A copy of a value that no longer follows its leaves."""
    out = Box(*_CONTENT(box))
    out.table, out.rows = box.table, box.rows
    for name, value in changes.items():
        setattr(out, name, value)
    return out


def replace_content(box: Box, new: Box) -> None:
    """An in-place operation: `box` keeps its identity (and table flag) and takes on what is known
    of `new`.
    """
    table = box.table
    for name in Box.__slots__:
        if name not in {"live", "base"}:
            setattr(box, name, getattr(new, name))
    box.table = table | new.table


def shaped(box: Box, action: Callable[[Array], Array]) -> Box:
    """A value after a change of shape or a selection, applied alike to all that is known per
    element.
    """
    out = snapshot(box, shape=None, pos=None, val=None, key=None, rows=None)
    failed = False
    for name in ("pos", "val", "key"):
        array = getattr(box, name)
        if array is not None:
            try:
                changed = action(array)
                if core(changed).size > MAX_ELEMENTS:
                    failed = True
                    continue
                setattr(out, name, changed)
                out.shape = changed.shape
            except (ValueError, IndexError, TypeError, OverflowError):
                failed = True
    if failed:
        out.deps |= depends(box)
        out.targets |= target_bits(box)
    if out.shape is None and box.shape is not None and None not in box.shape:
        sizes = tuple(int(s or 0) for s in box.shape)
        if math.prod(sizes) <= 4_000_000:
            with suppress(ValueError, IndexError, TypeError, OverflowError):
                out.shape = action(np.broadcast_to(np.int8(0), sizes)).shape
    return out


def reduced(box: Box, action: Callable[[Array], Any] | None = None) -> Box:
    """A value summed, averaged or otherwise collapsed to one number."""
    out = merge([box], shape=())
    if box.nll:
        out.deps = box.deps
    if action is not None and box.val is not None and box.val.size:
        try:
            out.val = np.asarray(action(box.val))
        except (TypeError, ValueError):
            out.val = None
    return out


def stream() -> Box:
    """The synthetic validation stream: documents of varied length, each opened by `BOS`."""
    val = (np.arange(STREAM) * 7919) % 1000 + 5
    start = 0
    for turn in range(STREAM):
        val[start] = BOS
        start += (420, 900, 3100, 700, 1500, 5200, 260, 1100)[turn % 8]
        if start >= STREAM:
            break
    return Box(shape=(STREAM,), pos=np.arange(STREAM), val=val, marks=frozenset({"val"}))


@dataclass
class Leaf:
    """Something learnable: a module's parameters or one tensor; `seen` are positions it was trained
    on, `solid` those of them that it keeps when its adapters are taken away.
    """

    kind: str
    name: str
    line: int
    seen: int = 0
    grad: int = 0
    solid: int = 0
    marks: frozenset[str] = field(default=NO_MARKS)
