"""Branches, loops and handlers: what may happen, what happens again and what happens instead."""

from __future__ import annotations

import ast
from collections.abc import Container
from contextlib import suppress
from functools import partial
from itertools import repeat
from typing import Any

import numpy as np

from niblick.audit.flow.boxes import STREAM, Box, collect, is_token, target_bits
from niblick.audit.flow.imports import Imports
from niblick.audit.flow.joining import joined
from niblick.audit.flow.methods import called
from niblick.audit.flow.missed import (
    MOST_MORE,
    any_number,
    evenly,
    other_turns,
    spread_evenly,
    stored_in,
)
from niblick.audit.flow.objects import Module
from niblick.audit.flow.signals import (
    AbortSignal,
    BreakSignal,
    ContinueSignal,
    NotPlainError,
    ReturnSignal,
)
from niblick.audit.flow.trials import changed_by, is_weights, kept_names, random_in
from niblick.audit.flow.turns import Turns, plain_items
from niblick.audit.reads import name_of

_MAX_TURNS = 5000

_QUIET_TURNS = 2

_LOOP_STEPS = 30_000

_PLAIN_STEPS = 30_000
"""Of all executions of a loop together, before one that begins without touching anything of the
stream takes its first turn and its last only.
"""


class Branching(Imports):
    """Statements that choose or repeat."""

    def do_try(self, node: ast.Try) -> None:
        guarded = bool(node.handlers)
        self.tries += guarded
        try:
            try:
                self.block(node.body)
            finally:
                self.tries -= guarded
            self.block(node.orelse)
        except AbortSignal as signal:
            if not node.handlers or signal.final:
                raise
            if len(node.handlers) == 1:
                self.handle(node.handlers[0])
            else:
                for handler in node.handlers:
                    self.uncertainly(lambda one=handler: self.handle(one))
        else:
            self.suspect_handlers(node)
        finally:
            self.block(node.finalbody)

    do_trystar = do_try

    def handle(self, handler: ast.ExceptHandler) -> None:
        if handler.name:
            self.store(handler.name, Box())
        self.block(handler.body)

    def suspect_handlers(self, node: ast.Try) -> None:
        """Runs handlers that nothing seen leads to, where they do more than report: what they
        learn or write may have happened, the names they set stay as they were.
        """
        for handler in node.handlers:
            if self.acts(handler):
                scope = self.scopes[-1][0]
                before = dict(scope)
                self.uncertainly(lambda one=handler: self.handle(one))
                scope.clear()
                scope.update(before)

    def acts(self, body: ast.AST) -> bool:
        """Whether code trains, itself or through the functions of the program that it calls."""
        if id(body) not in self.handlers:
            self.handlers[id(body)] = list(called(body))
        return any(
            name_of(call.func) in {"backward", "step"}
            or any(self.learning(f) for f in self.program_functions(self.scopes[-1], call))
            for call in self.handlers[id(body)]
        )

    def do_match(self, node: ast.Match) -> None:
        self.value(node.subject)
        for case in node.cases:
            if case.guard is not None:
                self.value(case.guard)
            self.uncertainly(lambda body=case.body: self.block(body))

    def do_if(self, node: ast.If) -> None:
        condition = self.value(node.test)
        test = self.truth(condition)
        test = self.forced.get(id(node.test), test) if test is not None else None
        if test is None:
            tried = self.tried(node, condition)
            before, self.kept_for = self.kept_for, self.kept_for | tried
            try:
                self.both(node.body, node.orelse, condition, self.depends_on_data(condition))
            finally:
                self.kept_for = before
                for root in condition.roots if tried else ():
                    self.leaves[root].seen |= tried
        else:
            self.block(node.body if test else node.orelse)

    def tried(self, node: ast.If | ast.IfExp, condition: Any) -> int:
        """The positions by whose scores a search by trial keeps or takes back what it has changed;
        nought where a condition is none of a search.
        """
        if not (self.loops and isinstance(condition, Box) and "tested" in condition.marks):
            return 0
        loop = self.loops[-1]
        positions = target_bits(condition)
        plain = "train" in condition.marks or not positions or self.acts(loop)
        if plain or not (condition.roots and self.changes(node, loop)):
            return 0
        self.record_update(condition.roots, positions, node, frozenset({"kept"}))
        return positions

    def changes(self, node: ast.If | ast.IfExp, loop: ast.stmt) -> bool:
        """Whether the ways of a condition change weights in place, or keep some of those that its
        loop makes at random.
        """
        if isinstance(node, ast.If):
            places = [self.value(place) for place in changed_by(node)]
            if any(isinstance(v, Module) or is_weights(v) for v in places):
                return True
        if id(loop) not in self.random:
            find = partial(self.program_functions, self.scopes[-1])
            self.random[id(loop)] = random_in(loop, find)
        found = [self.lookup(name) for name in kept_names(node)] if self.random[id(loop)] else []
        return any(b.roots and is_weights(b) for value in found for b in collect(value))

    def depends_on_data(self, condition: Any) -> bool:
        """Whether a condition is decided by data of the run, or by how far a clock has come, not by
        a file or an unknown switch.
        """
        return (
            isinstance(condition, Box)
            and "file" not in condition.marks
            and bool(
                condition.deps
                or condition.roots
                or condition.marks
                or condition.pos is not None
                or condition.seen
            )
        )

    def both(
        self, then: list[ast.stmt], other: list[ast.stmt], condition: Any, data: bool = False
    ) -> None:
        """Runs two alternatives on the same state and joins what they leave behind."""
        self.uncertain -= data
        try:
            self.alternatives(then, other, condition)
        finally:
            self.uncertain += data

    def alternatives(self, then: list[ast.stmt], other: list[ast.stmt], condition: Any) -> None:
        scope = self.scopes[-1][0]
        before = dict(scope)
        first = self.uncertainly(lambda: self.block(then))
        after_then = dict(scope)
        scope.clear()
        scope.update(before)
        second = self.uncertainly(lambda: self.block(other))
        self.maybe_ended += first is not None or second is not None
        self.skipped(condition, first, second)
        if first is not None and second is not None:
            if isinstance(first, ReturnSignal) and isinstance(second, ReturnSignal):
                raise ReturnSignal(joined(first.value, second.value))
            raise second if isinstance(first, AbortSignal) else first
        if first is not None:
            self.pending_return(first)
            return
        if second is not None:
            scope.clear()
            scope.update(after_then)
            self.pending_return(second)
            return
        for name in after_then.keys() | scope.keys():
            scope[name] = joined(
                after_then.get(name, scope.get(name)), scope.get(name, after_then.get(name))
            )

    def pending_return(self, signal: BaseException) -> None:
        if isinstance(signal, ReturnSignal) and self.maybe_returns:
            self.maybe_returns[-1].append(signal.value)

    def uncertainly(self, action: Any) -> BaseException | None:
        """Runs what may or may not happen; the signal it ended with, if any."""
        self.uncertain += 1
        try:
            action()
        except (ReturnSignal, BreakSignal, ContinueSignal, AbortSignal) as signal:
            return signal
        finally:
            self.uncertain -= 1
        return None

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
        past: list[dict[str, Any]] = []
        for turn in range(_MAX_TURNS):
            test = self.truth(self.value(node.test))
            if test is False:
                self.block(node.orelse)
                return
            past = [*past[-2:], {name: self.lookup(name) for name in counted}]
            mark = (self.interest, self.maybe_ended)
            if not self.turn(node.body):
                return
            endless = (self.interest, self.maybe_ended) != mark or test is None
            if turn + 1 >= _QUIET_TURNS and (
                endless or self.trace.steps - first_step > _LOOP_STEPS
            ):
                break
        if self.leap(node, past):
            self.turn(node.body)
            return
        self.widen(node.body)
        self.widened += 1
        try:
            self.turn(node.body)
        finally:
            self.widened -= 1

    def leap(self, node: ast.While, past: list[dict[str, Any]]) -> bool:
        """Sets the counters of a loop to what its last turn begins with, where they have grown
        evenly and the loop's condition tells when it ends.
        """
        scope = self.scopes[-1][0]
        now: dict[str, Any] = {name: scope.get(name) for name in past[-1]}
        steps = evenly([*past, now])
        tested = {n.id for n in ast.walk(node.test) if isinstance(n, ast.Name)} & now.keys()
        sure = tested and tested <= steps.keys()
        if not sure or self.truth(self.value(node.test)) is not True:
            return False
        self.widen(node.body, steps)

        def goes_on(turns: int) -> bool:
            scope.update({name: now[name] + turns * step for name, step in steps.items()})
            return self.truth(self.value(node.test)) is True

        far = 1
        while far < STREAM and goes_on(far):
            far *= 2
        near = far // 2
        while far - near > 1:
            middle = (near + far) // 2
            near, far = (middle, far) if goes_on(middle) else (near, middle)
        return goes_on(near) and far < STREAM

    def widen(self, body: list[ast.stmt], but: Container[str] = ()) -> None:
        """Forgets the value of every plain number the loop body changes, `but` of some."""
        scope = self.scopes[-1][0]
        for name in stored_in(body):
            old = scope.get(name)
            if isinstance(old, (int, float, np.generic)) and name not in but:
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
        try:
            self.for_turns(node, self.iterate(items, None))
        finally:
            self.loops.pop()

    def for_turns(self, node: ast.For | ast.AsyncFor, sequence: list[Any]) -> None:
        count = len(sequence)
        first_step = self.trace.steps - self.loop_steps.get(id(node), 0)
        before = dict(self.scopes[-1][0])
        at = 0
        finished, skipped, left = True, False, 0
        while at < count:
            mark, touched = self.interest, self.touched
            self.assign(node.target, any_number(sequence[at]) if skipped else sequence[at])
            if not self.turn(node.body):
                finished = False
                break
            busy = self.interest != mark
            worn = self.touched == touched and self.trace.steps - first_step > _PLAIN_STEPS
            long = at > _MAX_TURNS or self.trace.steps - first_step > _LOOP_STEPS
            if (busy or long) and _QUIET_TURNS - 1 <= at < count - 2:
                left = self.more_turns(node, sequence, at, before)
                at = count - 1
            elif worn and not busy and at == 0 and count > _QUIET_TURNS:
                self.widen(node.body)
                at, skipped = count - 1, True
            else:
                at += 1
        self.loop_steps[id(node)] = self.trace.steps - first_step
        if finished:
            if left:
                self.fill_between(node, left, count - 1)
            self.block(node.orelse)

    do_asyncfor = do_for

    def more_turns(
        self, node: ast.For | ast.AsyncFor, sequence: list[Any], at: int, before: dict[str, Any]
    ) -> int:
        """Takes the turns, up to the last, that decide otherwise than those taken; the last one."""

        def around(part: ast.expr) -> Any:
            plain = isinstance(part, ast.Name) and part.id in before
            return before[part.id] if plain else self.value(part)  # type: ignore[attr-defined]

        taken, place = (*range(at + 1), len(sequence) - 1), (id(node), *self.stack)
        known = self.decided.setdefault(place, set())
        more, work = other_turns(node, sequence, around, taken, known)
        self.trace.steps += work
        if len(more) > MOST_MORE:
            self.note(f"limit: line {node.lineno} begins a loop of too many kinds of turns")
        for turn, told in more[:MOST_MORE]:
            kept, self.forced = self.forced, self.forced | told
            self.assign(node.target, sequence[turn])
            try:
                self.turn(node.body)
            finally:
                self.forced = kept
            at = turn
        return at

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
