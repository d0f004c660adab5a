"""Turns of a long loop that do what none of those taken does.

The engine takes the first, the second and the last turn of a loop that scores or learns. What a
turn decides by plain numbers (`if step == 5`) is known of every turn without taking it: the plain
part of the body is run for all of them, and the first turn with a decision not seen is taken, too.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable
from itertools import islice, pairwise
from typing import Any

import numpy as np

from niblick.audit.flow.boxes import Array, Box
from niblick.audit.flow.objects import Function
from niblick.audit.flow.signals import NotPlainError
from niblick.audit.flow.turns import BREAK, Names, Step, Turns
from niblick.audit.operators import COMPARE

MOST_MORE = 6
MOST_WORK, LEAST_WORK = 100_000, 1_000  # on one loop in all, and on a later run of it
_SIZES = frozenset({"numel", "size", "__len__"})
_FAILS = (
    NotPlainError,
    TypeError,
    ValueError,
    LookupError,
    ArithmeticError,
    AttributeError,
    RecursionError,
)
Loop = ast.For | ast.AsyncFor | ast.While
Told = dict[int, bool]


class Sketch(Turns):
    """The plain part of a loop's body; `told` are the decisions of the turn that was run last."""

    def __init__(self, node: Loop, around: Callable[[ast.expr], Any]) -> None:
        super().__init__(node, around)
        self.told: Told = {}
        self.inside: set[int] = set()
        self.body = self.block(node.body)
        self.begin = self.tested(node.test) if isinstance(node, ast.While) else None
        self.target_of = None if isinstance(node, ast.While) else self.target(node.target)

    def run(self, item: Any) -> bool:
        """One turn; False where the loop has ended, or its end is not known."""
        self.told = {}
        if self.target_of is not None:
            self.target_of(item)
        elif self.begin is not None and not self.begin(self.names):
            return False
        return bool(self.body(self.names) != BREAK)

    def statement(self, node: ast.stmt) -> Step:
        if isinstance(node, ast.If):
            return self.choice(node)
        if isinstance(node, (ast.With, ast.AsyncWith)):
            return self.block(node.body)
        inside = (n for n in ast.walk(node) if isinstance(n, (ast.If, ast.IfExp, ast.Compare)))
        tests = [self.tested(n if isinstance(n, ast.Compare) else n.test) for n in inside]
        stored = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)} & self.own
        step = self.plain(node)
        if step is None:
            stored &= {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and _set(n)}

        def run(names: Names) -> Any:
            for test in tests:
                test(names)
            try:
                return step(names) if step is not None else _forget(names, stored)
            except _FAILS:
                return _forget(names, stored)

        return run

    def plain(self, node: ast.stmt) -> Step | None:
        try:
            return super().statement(node)
        except NotPlainError:
            return None

    def choice(self, node: ast.If) -> Step:
        test, then, other = self.tested(node.test), self.block(node.body), self.block(node.orelse)
        stored = {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and _set(n)}

        def run(names: Names) -> Any:
            value = test(names)
            if value is None:
                return _forget(names, stored)
            return then(names) if value else other(names)

        return run

    def tested(self, node: ast.expr) -> Step:
        """A test whose outcome is taken down; None where it is not plain."""
        try:
            step = self.expression(node)
        except NotPlainError:
            return lambda names: None

        def run(names: Names) -> bool | None:
            try:
                self.told[id(node)] = bool(step(names))
            except _FAILS:
                return None
            return self.told[id(node)]

        return run

    def changed(self, node: ast.expr) -> Step:
        raise NotPlainError

    def expression(self, node: ast.expr) -> Step:
        own = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)} & self.own
        called = node.func if isinstance(node, ast.Call) else None
        if isinstance(called, ast.Attribute) and called.attr in _SIZES and not own:
            size = self.around(node)
            if isinstance(size, int):
                return lambda names: size
        if isinstance(called, ast.Name) and called.id not in self.own:
            function = self.around(called)
            if isinstance(function, Function) and (made := self.applied(function, node)):
                return made
        if isinstance(node, ast.Compare):
            return self.compared(node)
        return super().expression(node)

    def compared(self, node: ast.Compare) -> Step:
        """A comparison of any length, or whether a number is in a set of the program's."""
        sides = [self.side(side) for side in (node.left, *node.comparators)]
        actions = [COMPARE[type(op)] for op in node.ops]

        def run(names: Names) -> bool:
            values = [side(names) for side in sides]
            pairs = zip(actions, values, values[1:], strict=False)
            return all(action(a, b) for action, a, b in pairs)

        return run

    def side(self, node: ast.expr) -> Step:
        if isinstance(node, ast.Name) and node.id not in self.own:
            found = self.around(node)
            if isinstance(found, (set, frozenset, dict, str)):
                return lambda names: found
        return self.expression(node)

    def applied(self, function: Function, node: ast.expr) -> Step | None:
        """A call to a function that does no more than return an expression."""
        body = function.node.body if isinstance(function.node.body, list) else []
        spec = function.node.args
        first = body[0] if len(body) == 1 else None
        if not isinstance(first, ast.Return) or first.value is None or id(function) in self.inside:
            return None
        if not isinstance(node, ast.Call) or node.keywords or len(spec.args) != len(node.args):
            return None
        given = [self.expression(arg) for arg in node.args]
        own, self.own = self.own, {a.arg for a in spec.args}
        self.inside.add(id(function))
        try:
            inner = super().expression(first.value)
        finally:
            self.own = own
            self.inside.discard(id(function))
        places = [a.arg for a in spec.args]
        return lambda names: inner({k: part(names) for k, part in zip(places, given, strict=True)})


def other_turns(
    node: Loop,
    sequence: Iterable[Any],
    around: Callable[[ast.expr], Any],
    taken: int,
    known: set[tuple[int, bool]],
    work: int = MOST_WORK,
) -> tuple[list[tuple[int, Told, Names]], int]:
    """The turns, with their decisions and the names that each begins with, that a loop should take
    beside the first `taken` and the last, and the work of finding them, at most `work`; decisions
    `known` from earlier runs of the loop are none, new ones are added.
    """
    told: list[tuple[Told, Names]] = []
    try:
        sketch = Sketch(node, around)
        most = work // max(1, len(sketch.own))
        for item in islice(sequence, most):
            before = dict(sketch.names) if isinstance(node, ast.While) else {}
            goes_on = sketch.run(item)
            told.append((sketch.told, before))
            if not goes_on:
                break
    except _FAILS:
        return [], 0
    last = told[-1:] if goes_on else []
    if isinstance(node, ast.While):
        last = [] if goes_on else told[-2:-1]
        told = told[: None if goes_on else -1]
    ends = told[:taken] + last
    known |= {pair for decisions, _ in ends for pair in decisions.items()}
    out = []
    for at, (decisions, before) in enumerate(told):
        if at >= taken and decisions.items() - known:
            out.append((at, decisions, before))
            known |= decisions.items()
    return out, len(told) * len(sketch.own)


def _set(node: ast.Name) -> bool:
    return not isinstance(node.ctx, ast.Load)


def _forget(names: Names, stored: set[str]) -> None:
    for name in stored:
        names.pop(name, None)


def spread_evenly(rows: Array, before: int, last: int) -> Array | None:
    """Positions with the empty rows between two given ones filled evenly; None where they are not
    empty, or do not lie evenly.
    """
    if (rows[before + 1 : last] >= 0).any() or (rows[[before, last]] < 0).any():
        return None
    step, odd = np.divmod(rows[last] - rows[before], last - before)
    if odd.any() or (step != rows[before] - rows[before - 1]).any():
        return None
    turns = np.arange(last - before + 1).reshape(-1, *[1] * (rows.ndim - 1))
    return np.concatenate([rows[:before], rows[before] + turns * step])


def any_number(item: Any) -> Any:
    """An item of a loop with its plain numbers forgotten: it stands for all turns but the first."""
    if isinstance(item, tuple):
        return tuple(any_number(part) for part in item)
    return Box(shape=()) if isinstance(item, (int, float, np.generic)) else item


def evenly(past: list[dict[str, Any]]) -> dict[str, int]:
    """By how much whole numbers have grown from turn to turn, of those that grew evenly."""
    steps: dict[str, int] = {}
    for name in past[0]:
        values = [turn[name] for turn in past]
        if all(isinstance(v, int) and not isinstance(v, bool) for v in values):
            grown = {later - sooner for sooner, later in pairwise(values)}
            steps |= {name: grown.pop()} if len(grown) == 1 else {}
    return steps


def stored_in(body: list[ast.stmt]) -> list[str]:
    """The names that statements assign to."""
    names = (n for s in body for n in ast.walk(s) if isinstance(n, ast.Name))
    return list({n.id: 0 for n in names if isinstance(n.ctx, ast.Store)})


def only_set_to(value: Any, name: str, body: list[ast.stmt]) -> bool:
    """Whether statements give a name one plain value alone, as a switch that is only ever set."""
    parts = [n for s in body for n in ast.walk(s)]
    stored = [n for n in parts if isinstance(n, ast.Name) and n.id == name]
    set_to = [
        target
        for n in parts
        if isinstance(n, ast.Assign) and isinstance(n.value, ast.Constant)
        if type(n.value.value) is type(value) and n.value.value == value
        for target in n.targets
    ]
    return all(any(n is t for t in set_to) for n in stored if isinstance(n.ctx, ast.Store))
