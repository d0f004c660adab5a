"""Branches and handlers: what may happen, and what happens instead."""

from __future__ import annotations

import ast
from typing import Any

import numpy as np

from niblick.audit.flow.boxes import Array, Box, collect, target_bits
from niblick.audit.flow.figures import LOST, RIVALS
from niblick.audit.flow.imports import Imports
from niblick.audit.flow.joining import joined
from niblick.audit.flow.lengths import Rank
from niblick.audit.flow.methods import called
from niblick.audit.flow.objects import Module
from niblick.audit.flow.signals import AbortSignal, BreakSignal, ContinueSignal, ReturnSignal
from niblick.audit.flow.trials import changed_by, is_weights, kept_names
from niblick.audit.reads import name_of


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
                self.aside(lambda one=handler: self.handle(one))

    def aside(self, action: Any) -> None:
        """Runs what may happen; the names it sets stay as they were."""
        scope = self.scopes[-1][0]
        before = dict(scope)
        self.uncertainly(action)
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
        subject = self.value(node.subject)
        for case in node.cases:
            fits = self.fits(case.pattern, subject) if case.guard is None else None
            if fits:
                self.block(case.body)
                return
            if fits is False:
                continue
            if case.guard is not None:
                self.value(case.guard)
            self.uncertainly(lambda body=case.body: self.block(body))

    def fits(self, pattern: ast.pattern, subject: Any) -> bool | None:
        """Whether a plain value matches a pattern of plain values; None where that is not known."""
        if isinstance(pattern, ast.MatchAs) and pattern.pattern is None and pattern.name is None:
            return True
        if isinstance(pattern, ast.MatchOr):
            found = [self.fits(one, subject) for one in pattern.patterns]
            return True if True in found else None if None in found else False
        if isinstance(pattern, ast.MatchValue):
            return self.truth(self.compare(ast.Eq(), subject, self.value(pattern.value)))
        return None

    def do_if(self, node: ast.If) -> None:
        condition = self.value(node.test)
        test = self.truth(condition)
        test = self.forced.get(id(node.test), test) if test is not None else None
        if test is None:
            tried = self.tried(node, condition)
            before = self.kept_for, self.told_by
            self.kept_for, self.told_by = before[0] | tried, before[1] | self.told(condition)
            try:
                self.both(node.body, node.orelse, condition, self.depends_on_data(condition))
            finally:
                self.kept_for, self.told_by = before
                for root in condition.roots if tried else ():
                    self.leaves[root].seen |= tried
        else:
            self.block(node.body if test else node.orelse)
            if isinstance(condition, Rank) and self.environment.get("WORLD_SIZE") != "1":
                self.on_other_ranks(node.orelse if test else node.body)

    def on_other_ranks(self, body: list[ast.stmt]) -> None:
        """What the other processes of the run do instead, where they learn or change scores."""
        if any(self.acts(statement) for statement in body):
            self.aside(lambda: self.block(body))
        for part in (n for s in body for n in ast.walk(s) if isinstance(n, ast.AugAssign)):
            box = self.lookup(part.target.id) if isinstance(part.target, ast.Name) else None
            if isinstance(box, Box) and box.scores and not isinstance(part.op, ast.Add):
                box.val, box.marks = None, box.marks | {f"{LOST}a change on other ranks"}

    def tried(self, node: ast.If | ast.IfExp, condition: Any) -> int:
        """The positions by whose scores a search by trial keeps or takes back what it has changed;
        nought where a condition is none of a search.
        """
        if not (self.loops and isinstance(condition, Box) and "tested" in condition.marks):
            return 0
        loop = self.loops[-1]
        positions = target_bits(condition)
        plain = "train" in condition.marks or not positions or self.acts(loop)
        if plain or not (condition.roots and self.changes(node)):
            return 0
        self.record_update(condition.roots, positions, node, frozenset({"kept"}))
        return positions

    def told(self, condition: Any) -> int:
        """The positions by whose scores, held against others, a turn of a loop keeps what it has;
        nought where these are of training tokens, or of a model that the loop trains.
        """
        if not (self.loops and isinstance(condition, Box) and RIVALS in condition.marks):
            return 0
        learns = "train" in condition.marks or self.acts(self.loops[-1])
        return 0 if learns else target_bits(condition)

    def changes(self, node: ast.If | ast.IfExp) -> bool:
        """Whether the ways of a condition change weights in place, or keep some of them."""
        if isinstance(node, ast.If):
            places = [self.value(place) for place in changed_by(node)]
            if any(isinstance(v, Module) or is_weights(v) for v in places):
                return True
        found = [self.lookup(name) for name in kept_names(node)]
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
        before, sums = dict(scope), _numbers(scope)
        first = self.uncertainly(lambda: self.block(then))
        after_then, grown = dict(scope), _numbers(scope)
        scope.clear()
        scope.update(before)
        second = self.uncertainly(lambda: self.block(other))
        _counted_once(sums, grown)
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
        self.ways += 1
        try:
            action()
        except (ReturnSignal, BreakSignal, ContinueSignal, AbortSignal) as signal:
            return signal
        finally:
            self.uncertain -= 1
            self.ways -= 1
        return None


def _numbers(scope: dict[str, Any]) -> dict[int, tuple[Box, Array]]:
    """The single numbers of known content among names, by identity, with that content."""
    found = (v for v in scope.values() if isinstance(v, Box) and v.shape == ())
    return {id(box): (box, box.val) for box in found if box.val is not None}


def _counted_once(
    before: dict[int, tuple[Box, Array]], between: dict[int, tuple[Box, Array]]
) -> None:
    """What both ways of a condition have added to a sum alike was added once."""
    for key in before.keys() & between.keys():
        box, first = between[key]
        if box.val is None or box.shape != () or first is before[key][1] or box.val is first:
            continue
        if np.allclose(box.val - first, first - before[key][1], 1e-9, 0.0):
            box.val = first
