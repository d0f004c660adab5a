"""Numbers made of the length of the validation stream, and what is left of the split by a cut.

The engine's stream is short. A `Length` remembers what the number comes to for the public split, so
that a fixed number of tokens or windows is known for a small part of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from niblick.audit.flow.boxes import STREAM, Box, snapshot

PARTLY = "partly"
"""The mark of scores that a loop adds up, not their bytes, of which not every turn is taken."""
PART = "part:"
_WHOLE = 62_021_846 / STREAM  # tokens of the public split at the smallest vocabulary
_NEARLY = 0.9  # of the stream: a number read from its own file
_OVER = 1.25
"""Times the stream: what no count of the engine's own tokens comes to."""
_SOME = 1000
"""Bytes: more than what a loop asks for to have any."""
_MOST = 0.3
"""Of a split, what a cut to a fixed number leaves at most; larger vocabularies have fewer."""


class Length(int):
    """A number; `whole` is what it comes to for the public split, `cut` the fixed number that it
    was cut to, `turn` that of the loop it counts (nought: none).
    """

    whole: float
    cut: int
    turn: int

    @classmethod
    def of(cls, number: int, whole: float, cut: int = 0, turn: int = 0) -> Length:
        out = cls(number)
        out.whole, out.cut, out.turn = whole, cut, turn
        return out


class Rank(int):
    """A number, or whether something holds (1 or 0), that other processes of the run have
    otherwise.
    """


class Perhaps(list[Any]):
    """A list of which it is not known whether any of its items is there."""


class RankText(str):
    """The text of a process's number among those of the run."""


def length_of(box: Box, size: int) -> int:
    """The number of elements of a value, as a `Length` where it is (nearly) all of the stream."""
    return Length.of(size, size * _WHOLE) if is_split(box) else size


def is_split(box: Box) -> bool:
    """Whether a value is the stream, or nearly all of it."""
    run = box.pos is not None and box.pos.ndim == 1 and "val" in box.marks
    return run and box.pos.shape[0] > STREAM // 2  # type: ignore[union-attr]


def computed(action: Callable[..., Any], values: tuple[Any, ...], out: Any) -> Any:
    """What plain arithmetic made of numbers, as a `Length` where one of them was one."""
    lengths = [v for v in values if isinstance(v, Length)]
    if not lengths and isinstance(out, int) and any(isinstance(v, Rank) for v in values):
        return Rank(out)
    if not lengths or not isinstance(out, int) or isinstance(out, bool):
        return out
    try:
        whole = action(*[v.whole if isinstance(v, Length) else v for v in values])
    except (ArithmeticError, TypeError, ValueError):
        return out
    cut = 0 if 0 in [v.cut for v in lengths] else max(v.cut for v in lengths)
    return Length.of(out, float(whole), cut, max(v.turn for v in lengths))


def smallest(values: list[Any]) -> Any:
    """The least of plain numbers; one that is small beside the split cuts it."""
    out, lengths = min(values), [v for v in values if isinstance(v, Length)]
    if not lengths or not all(isinstance(v, int) for v in values):
        return out
    sizes = [v.whole for v in lengths if not math.isnan(v.whole)]
    fixed = [v for v in values if not isinstance(v, Length) and v <= min(sizes, default=0)]
    whole = min([*fixed, *sizes], default=math.nan)
    cut = fixed[0] if fixed and whole < _MOST * min(sizes) else 0
    return Length.of(out, whole, cut or max(v.cut for v in lengths))


def beside(left: Any, right: Any) -> tuple[Any, Any]:
    """Two numbers as they compare in a run over the public split: a length of the stream is as
    large as there, beside a number that the engine's stream never counts to.
    """
    for one, other in ((left, right), (right, left)):
        fixed = is_fixed(other) and other > _OVER * STREAM
        if fixed and isinstance(one, Length) and one > STREAM // 2 and not math.isnan(one.whole):
            return (one.whole, other) if one is left else (other, one.whole)
    return left, right


def is_fixed(value: Any) -> bool:
    """Whether a value is a plain number that is none of the stream's."""
    plain = isinstance(value, (int, float)) and not isinstance(value, (bool, Length, Rank))
    return plain and math.isfinite(value)


def few(number: float, *, of_bytes: bool = False) -> bool:
    """Whether a number of tokens, or of bytes, is a small part of the split, and no count of the
    engine's own stream.
    """
    return (_SOME if of_bytes else _OVER * STREAM) < number < _MOST * STREAM * _WHOLE


def early(number: float, last: float) -> bool:
    """Whether a loop over the split that comes to `last` in the engine's stream passes a number
    early, one that is none of the stream's own, be it shared by two processes.
    """
    return 2 * _OVER * last < number < _MOST * _WHOLE * last


def steps(start: int, stop: int, step: int) -> Any:
    """A range; up to a length of the stream its numbers are no fixed ones, as there are more of
    them in the split, and say whether its end was cut.
    """
    plain = range(start, stop, step)
    if not isinstance(stop, Length):
        return plain
    return [Length.of(i, math.nan, turn=stop.cut) for i in plain]


def cut_by(box: Box, out: Box, key: Any) -> Box:
    """A piece of the stream that a subscript has taken, marked where it is all that is left of it:
    its beginning up to a fixed number, or a piece whose place was cut.
    """
    if not isinstance(key, slice) or not is_split(box):
        return out
    cut = key.start.turn if isinstance(key.start, Length) else 0
    if key.start is None and isinstance(key.stop, int) and key.stop > 0:
        whole = key.stop.whole if isinstance(key.stop, Length) else key.stop
        cut = int(whole) if whole < _MOST * STREAM * _WHOLE else cut
        cut = 0 if key.stop > _NEARLY * STREAM and whole < STREAM + 2 else cut
    return snapshot(out, marks=out.marks | {f"{PART}{cut}"}) if cut else out


def cuts_of(marks: frozenset[str]) -> set[str]:
    """The fixed numbers that what has these marks was cut to."""
    return {m.removeprefix(PART) for m in marks if m.startswith(PART)}
