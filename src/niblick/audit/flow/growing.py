"""Lists that a long loop fills, an entry or a few each turn, of which not every turn is taken."""

from __future__ import annotations

import ast
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np

from niblick.audit.flow.boxes import MAX_ELEMENTS, Array, Box, snapshot, target_bits, witness
from niblick.audit.flow.missed import Loop

_MOST, _ALIKE = 4096, 1e-6
_GROWS = frozenset({"append", "extend", "insert", "appendleft"})


class Growth:
    """The lists that an inner loop appends to, and how long each was after every turn taken; none
    where it adds up sums beside, which are of the turns taken, too.
    """

    def __init__(self, node: Loop | None, lookup: Callable[[str], Any]) -> None:
        inside = [n for s in (node.body if node else ()) for n in ast.walk(s)]
        calls = (n.func for n in inside if isinstance(n, ast.Call))
        appends = (f for f in calls if isinstance(f, ast.Attribute) and f.attr in _GROWS)
        names = {f.value.id for f in appends if isinstance(f.value, ast.Name)}
        found = [] if any(_sums(n) for n in inside) else [lookup(name) for name in names]
        self.lists = [(v, [len(v)]) for v in found if isinstance(v, list)]

    def turn(self) -> None:
        for items, sizes in self.lists:
            sizes.append(len(items))

    def fill(self, left: int, last: int) -> None:
        """Puts in what the turns between `left` and the last would have appended, where all before
        were taken, each appended as many, and the places of these lie evenly.
        """
        found: list[list[Any]] = []
        for items, sizes in self.lists:
            grown = {b - a for a, b in pairwise(sizes)}
            if left < 1 or len(sizes) != left + 3 or len(grown) != 1 or grown == {0}:
                return
            if (last - left - 1) * max(grown) > _MOST:
                return
            rows = [items[a:b] for a, b in pairwise(sizes[left - 1 :])]
            columns = [between(a, b, c, last - left) for a, b, c in zip(*rows, strict=True)]
            if not all(columns):
                return
            found.append([one for turn in zip(*columns, strict=True) for one in turn])
        for (items, sizes), more in zip(self.lists, found, strict=True):
            items[sizes[-2] : sizes[-2]] = more


def _sums(node: ast.AST) -> bool:
    """Whether a statement adds to a number, or to an entry that is always the same."""
    if not isinstance(node, ast.AugAssign):
        return False
    return not isinstance(node.target, ast.Subscript) or isinstance(node.target.slice, ast.Constant)


def between(before: Any, one: Any, other: Any, turns: int) -> list[Any]:
    """The entries between two that lie so many turns apart; empty where they are not known."""
    if not isinstance(one, Box):
        same = isinstance(one, (int, float)) and before == one == other
        return [one] * (turns - 1) if same else []
    boxes = [b for b in (before, one, other) if isinstance(b, Box)]
    places = [p for p in map(_places, boxes) if p is not None]
    if len(places) < 3 or len({p.shape for p in places}) > 1:
        return []
    step = places[1] - places[0]
    even = np.array_equal(places[2], places[1] + turns * step)
    content = [c for c in _CONTENTS if all(map(_has, boxes[1:], places[1:], [c, c]))]
    if not (even and content) or places[1].size * turns > MAX_ELEMENTS:
        return []
    spots = [np.asarray(places[1] + turn * step) for turn in range(1, turns)]
    if one.pos is None:
        return [snapshot(one, deps=1 << int(p), val=content[0](p), key=None) for p in spots]
    return [snapshot(one, pos=pos, val=content[0](pos), key=None) for pos in spots]


def added_between(taken: list[Any], turns: int) -> Box | None:
    """The losses of one token each, or multiples of them, that a loop would have added in the turns
    between the last two of three, `turns` apart; None where they are not known.
    """
    boxes = [b for b in taken if isinstance(b, Box) and b.val is not None and b.val.size == 1]
    found = [target_bits(box) for box in boxes]
    if len(boxes) != 3 or any(not bits or bits & (bits - 1) for bits in found):
        return None
    first, one, other = (bits.bit_length() - 1 for bits in found)
    step = one - first
    if other != one + turns * step or not 1 < turns <= MAX_ELEMENTS:
        return None
    losses = witness(np.asarray([first, one, other]))
    times = [float(box.val.item()) for box in boxes if box.val is not None] / np.asarray(losses)
    if np.ptp(times) > _ALIKE * np.abs(times).max():
        return None
    between = one + step * np.arange(1, turns)
    value = times[0] * np.asarray(witness(between))
    return snapshot(boxes[2], pos=between, val=value, shape=value.shape, targets=0, key=None)


def _places(box: Box) -> Array | None:
    """The places of what is in a value; of a number, the one token that it was looked up for."""
    one = box.pos is None and box.deps and not box.deps & (box.deps - 1)
    return np.asarray(box.deps.bit_length() - 1) if one and box.shape == () else box.pos


_CONTENTS: tuple[Callable[[Array], Array | None], ...] = (
    lambda _: None,
    witness,
    lambda pos: -np.asarray(witness(pos)),
    lambda pos: np.exp(-np.asarray(witness(pos))),
)


def _has(box: Box, places: Array, content: Callable[[Array], Array | None]) -> bool:
    """Whether the content of a value is that of losses, or what is made of them, at its places."""
    wanted = content(places)
    if wanted is None or box.val is None:
        return wanted is box.val
    return box.val.shape == wanted.shape and np.allclose(box.val, wanted)
