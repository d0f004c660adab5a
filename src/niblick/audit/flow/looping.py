"""Loops: what happens again, turn by turn where that is short, else by turns that stand for all."""

from __future__ import annotations

import ast
from collections.abc import Container
from contextlib import suppress
from itertools import repeat
from typing import Any

import numpy as np

from niblick.audit.flow.boxes import STREAM, Box, is_token
from niblick.audit.flow.branching import Branching
from niblick.audit.flow.endings import bounds
from niblick.audit.flow.growing import Growth, added_between
from niblick.audit.flow.lengths import PART, PARTLY
from niblick.audit.flow.missed import (
    LEAST_WORK,
    MOST_MORE,
    MOST_WORK,
    Loop,
    Told,
    any_number,
    evenly,
    only_set_to,
    other_turns,
    spread_evenly,
    stored_in,
)
from niblick.audit.flow.signals import BreakSignal, ContinueSignal, NotPlainError
from niblick.audit.flow.turns import Names, Turns, are_known, plain_items

_MAX_TURNS = 5000

_QUIET_TURNS = 2

_LOOP_STEPS = 30_000

_PLAIN_STEPS = 30_000
"""Of all executions of a loop together, before one that begins without touching anything of the
stream takes its first turn and its last only.
"""


class Looping(Branching):
    """Statements that repeat."""

    def all_turns(self, node: ast.For | ast.AsyncFor | ast.While, items: Any) -> bool:
        """Whether a loop was one over plain numbers, every turn of which has been taken."""
        sequence = repeat(None) if isinstance(node, ast.While) else plain_items(items)
        if sequence is None or node.orelse:
            return False
        with suppress(NotPlainError):
            turns = Turns(node, self.around)
            names = turns.loop(node, sequence)
            self.trace.steps += turns.work
            for name in turns.own & names.keys():
                self.store(name, names[name])
            return True
        return False

    def around(self, node: ast.expr) -> Any:
        """What a name or an attribute stands for, read once for a loop over plain numbers."""
        return self.lookup(node.id) if isinstance(node, ast.Name) else self.value(node)

    def do_while(self, node: ast.While) -> None:
        if self.all_turns(node, None):
            return
        self.loops.append(node)
        try:
            self.while_turns(node)
        finally:
            self.loops.pop()

    def while_turns(self, node: ast.While) -> None:
        first_step = self.trace.steps
        counted = stored_in(node.body)
        before = dict(self.scopes[-1][0])
        past: list[dict[str, Any]] = []
        for turn in range(_MAX_TURNS):
            test = self.again(node)
            if test is False:
                self.block(node.orelse)
                return
            self.laps = turn + 1
            past = [*past[-2:], {name: self.lookup(name) for name in counted}]
            mark = (self.interest, self.maybe_ended)
            if not self.turn(node.body):
                return
            endless = (self.interest, self.maybe_ended) != mark or test is None
            if turn + 1 >= _QUIET_TURNS and (
                endless or self.trace.steps - first_step > _LOOP_STEPS
            ):
                break
        self.more_laps(node, past, before)
        self.trace.jump()
        if self.leap(node, past):
            self.turn(node.body)
            return
        self.widen(node.body)
        self.widened += 1
        sums = len(self.trace.sums)
        try:
            self.turn(node.body)
        finally:
            self.widened -= 1
            self.trace.unsure(sums)

    def again(self, node: ast.While) -> bool | None:
        """Whether a loop takes another turn, by the engine's own stream."""
        self.turning += 1
        try:
            return self.truth(self.value(node.test))
        finally:
            self.turning -= 1

    def leap(self, node: ast.While, past: list[dict[str, Any]]) -> bool:
        """Sets the counters of a loop to what its last turn begins with, where they have grown
        evenly and the loop's condition tells when it ends.
        """
        scope = self.scopes[-1][0]
        now: dict[str, Any] = {name: scope.get(name) for name in past[-1]}
        steps = evenly([*past, now])
        tested = {n.id for n in ast.walk(node.test) if isinstance(n, ast.Name)} & now.keys()
        sure = tested and tested <= steps.keys()
        if not sure or self.again(node) is not True:
            return False
        self.widen(node.body, steps)

        def goes_on(turns: int) -> bool:
            scope.update({name: now[name] + turns * step for name, step in steps.items()})
            return self.again(node) is True

        far = 1
        while far < STREAM and goes_on(far):
            far *= 2
        near = far // 2
        while far - near > 1:
            middle = (near + far) // 2
            near, far = (middle, far) if goes_on(middle) else (near, middle)
        return goes_on(near) and far < STREAM

    def widen(self, body: list[ast.stmt], but: Container[str] = ()) -> None:
        """Forgets the value of every plain number the loop body changes, `but` of some: not where
        all it ever gives a name is the very value that this has already.
        """
        scope = self.scopes[-1][0]
        for name in stored_in(body):
            old = scope.get(name)
            plain = isinstance(old, (int, float, np.generic)) and name not in but
            if plain and not only_set_to(old, name, body):
                scope[name] = Box(shape=())

    def turn(self, body: list[ast.stmt]) -> bool:
        """One turn of a loop; False after `break`."""
        try:
            self.block(body)
        except BreakSignal:
            return False
        except ContinueSignal:
            return True
        return True

    def do_for(self, node: ast.For | ast.AsyncFor) -> None:
        items = self.value(node.iter)
        if self.all_turns(node, items):
            return
        self.loops.append(node)
        self.adding.append({})
        scores, sums = len(self.trace.scores), len(self.trace.sums)
        try:
            self.for_turns(node, self.iterate(items, None))
        finally:
            self.loops.pop()
            self.adding.pop()
            if not are_known(items):
                self.trace.unsure(sums)
        self.ended(node, scores)

    def for_turns(self, node: ast.For | ast.AsyncFor, sequence: list[Any]) -> None:
        count = len(sequence)
        first_step = self.trace.steps - self.loop_steps.get(id(node), 0)
        before, scores = dict(self.scopes[-1][0]), len(self.trace.scores)
        at, growth = 0, Growth(node if self.loops[1:] else None, self.lookup)
        finished, skipped, left = True, False, 0
        while at < count:
            mark, touched = self.interest, self.touched
            self.assign(node.target, any_number(sequence[at]) if skipped else sequence[at])
            if not self.turn(node.body):
                finished = False
                break
            growth.turn()
            busy = self.interest != mark
            worn = self.touched == touched and self.trace.steps - first_step > _PLAIN_STEPS
            long = at > _MAX_TURNS or self.trace.steps - first_step > _LOOP_STEPS
            if (busy or long) and _QUIET_TURNS - 1 <= at < count - 2:
                left, finished = self.more_turns(node, sequence, at, before)
                if not finished and left < count // 2:
                    self.cut_short(scores, left)
                at = count - 1 if finished else count
                self.trace.jump()
            elif worn and not busy and at == 0 and count > _QUIET_TURNS:
                self.widen(node.body)
                at, skipped = count - 1, True
                self.trace.jump()
            else:
                at += 1
        self.loop_steps[id(node)] = self.trace.steps - first_step
        if finished:
            if left:
                self.fill_between(node, left, count - 1)
                growth.fill(left, count - 1)
                self.add_between(node, self.adding[-1], left, count - 1)
            self.block(node.orelse)

    do_asyncfor = do_for

    def more_turns(
        self, node: ast.For | ast.AsyncFor, sequence: list[Any], at: int, before: dict[str, Any]
    ) -> tuple[int, bool]:
        """Takes the turns, up to the last, that decide otherwise than those taken; which came last,
        and whether the loop goes on.
        """
        for turn, told, _ in self.others(node, sequence, at + 1, before):
            self.assign(node.target, sequence[turn])
            self.trace.jump()
            at = turn
            if not self.decided_turn(node.body, told):
                return at, False
        return at, True

    def cut_short(self, first: int, turns: int) -> None:
        """Marks the scores of a loop that numbers end early, far from the end of the stream."""
        events = self.trace.scores[first:]
        world = int(self.environment.get("WORLD_SIZE", "1"))
        if all(0 < e.targets.bit_length() < STREAM // (2 * world) for e in events):
            for event in events:
                event.marks |= {f"{PART}{turns}"}

    def ended(self, node: ast.For | ast.AsyncFor, first: int) -> None:
        """Marks the scores of a loop over the stream that a fixed number ends in the split."""
        events = self.trace.scores[first:]
        world = int(self.environment.get("WORLD_SIZE", "1"))
        if any(e.targets.bit_length() >= STREAM // (2 * world) for e in events):
            for limit in bounds(node, self.value):
                for event in events:
                    event.marks |= {f"{PART}{limit}"}

    def more_laps(
        self, node: ast.While, past: list[dict[str, Any]], before: dict[str, Any]
    ) -> None:
        """Takes the turns that decide otherwise than those taken, with the counters of each; what
        the loop counted until then is as it was.
        """
        scope = self.scopes[-1][0]
        now = {name: scope.get(name) for name in past[-1]}
        steps = evenly([*past, now])
        for _, told, names in self.others(node, repeat(None), self.laps, before):
            scope.update({name: names[name] for name in steps.keys() & names.keys()})
            self.trace.jump()
            if not self.decided_turn(node.body, told):
                break
        scope.update({name: now[name] for name in steps})

    def others(
        self, node: Loop, sequence: Any, taken: int, before: dict[str, Any]
    ) -> list[tuple[int, Told, Names]]:
        """The turns that a loop should take beside its first ones and its last."""

        def around(part: ast.expr) -> Any:
            plain = isinstance(part, ast.Name) and part.id in before
            return before[part.id] if plain else self.value(part)  # type: ignore[attr-defined]

        known = self.decided.setdefault((id(node), *self.stack), set())
        left = max(MOST_WORK - self.sketched.get(id(node), 0), LEAST_WORK)
        more, work = other_turns(node, sequence, around, taken, known, left)
        self.sketched[id(node)] = self.sketched.get(id(node), 0) + work
        self.trace.steps += work >> 4
        if len(more) > MOST_MORE:
            self.note(f"limit: line {node.lineno} begins a loop of too many kinds of turns")
        return more[:MOST_MORE]

    def decided_turn(self, body: list[ast.stmt], told: Told) -> bool:
        """One turn with its decisions; False after `break`."""
        kept, self.forced = self.forced, self.forced | told
        try:
            return self.turn(body)
        finally:
            self.forced = kept

    def add_between(
        self, node: ast.For | ast.AsyncFor, added: dict[int, list[Any]], before: int, last: int
    ) -> None:
        """Adds to the sums of an inner loop, which adds up scores and no bytes, what the turns left
        out would have: where that is not known, the sums are marked.
        """
        inside = [n for s in node.body for n in ast.walk(s) if isinstance(n, ast.AugAssign)]
        names = {n.target.id: n for n in inside if isinstance(n.target, ast.Name)}
        boxes = {name: self.lookup(name) for name in names}
        known = {k: v for k, v in boxes.items() if isinstance(v, Box) and v.val is not None}
        if not self.loops[1:] or any("bytes" in box.marks for box in known.values()):
            return
        for name, box in known.items():
            if box.scores:
                taken = added.get(id(names[name]), [])
                more = (
                    added_between(taken[-3:], last - before) if len(taken) == before + 2 else None
                )
                if more is None:
                    box.marks |= {PARTLY}
                else:
                    self.augment(names[name], box, self.reduce("sum", more, [more], {}))

    def fill_between(self, node: ast.For | ast.AsyncFor, before: int, last: int) -> None:
        """Rows that a loop over all of an array's rows would have filled in turns left out: where
        the places of the last turn but those follow from the turns before, they lie evenly.
        """
        for part in (n for s in node.body for n in ast.walk(s) if isinstance(n, ast.Subscript)):
            name = part.value.id if isinstance(part.value, ast.Name) else ""
            box = self.lookup(name) if isinstance(part.ctx, ast.Store) and name else None
            if isinstance(box, Box) and is_token(box) and box.shape and box.shape[0] == last + 1:
                even = None if box.pos is None else spread_evenly(box.pos, before, last)
                if even is not None:
                    content = None if box.val is None else self.stream.val
                    box.pos, box.val = even, None if content is None else content[even]
