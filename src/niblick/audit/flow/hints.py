"""Hints about tokens: values whose presence tells something about the token they are for, and
whether they reach a score.

A function that gates its outputs by the current token (`peeking`, `native`) marks what it hands
out; a mark counts as used once it meets a score, and as off once it is held against a threshold no
share can reach or multiplied by zero.
"""

from __future__ import annotations

import ast
from typing import Any

import numpy as np

from niblick.audit.flow.boxes import Box, collect, is_token
from niblick.audit.flow.figures import Figures
from niblick.audit.flow.objects import Function, HintEvent
from niblick.audit.flow.peeking import peeks

_PREFIX = "hint:"


class Hints(Figures):
    """Marks hints where they are made and follows them to the scores."""

    def mark_hints(self, function: Function, args: list[Any], result: Any, node: ast.AST) -> None:
        """Marks what a function of the program returns, if it looks at the tokens it hints at."""
        known = self.peeking.get(id(function.node))
        if known is None:
            known = self.peeking[id(function.node)] = peeks(function.node)
        if known and any(is_token(box) for arg in args for box in collect(arg)):
            self.new_hint(f"{function.name}", collect(result), function.node)

    def mark_native(self, name: str, args: list[Any], node: ast.AST) -> None:
        """Marks the arrays that a compiled function fills, if it looks at the tokens it hints
        at.
        """
        positions = self.native.get(name, frozenset())
        boxes = [box for i, arg in enumerate(args) if i in positions for box in collect(arg)]
        if boxes and any(is_token(box) for arg in args for box in collect(arg)):
            self.new_hint(name, boxes, node)

    def new_hint(self, name: str, boxes: list[Box], node: ast.AST) -> None:
        mark = f"{_PREFIX}{name}:{getattr(node, 'lineno', 0)}"
        self.trace.hints.setdefault(
            mark, HintEvent(name=name, where=self.where(node), certain=self.uncertain <= 0)
        )
        for box in boxes:
            box.marks |= {mark}

    def check_hints(self, a: Box, b: Box) -> None:
        """A hint that meets a score takes part in it."""
        if not self.trace.hints:
            return
        for score, other in ((a, b), (b, a)):
            if score.nll and not other.nll:
                for mark in other.marks & self.trace.hints.keys():
                    self.trace.hints[mark].used = True

    def gated(self, box: Box, places: list[Any]) -> None:
        """What is written at places that hints choose holds them; in a score they take part."""
        for place in places if self.trace.hints else ():
            if isinstance(place, Box):
                box.marks |= place.marks & self.trace.hints.keys()
                self.check_hints(box, place)

    def silence(self, op: ast.AST, a: Box, b: Box) -> None:
        """Notes hints held against a threshold above one, or given no weight."""
        for hint, number in ((a, b), (b, a)):
            marks = hint.marks & self.trace.hints.keys() if self.trace.hints else None
            if (
                not marks
                or len(marks) > 1
                or number.marks
                or number.val is None
                or number.val.size != 1
            ):
                continue
            value = float(np.asarray(number.val).reshape(-1)[0])
            if (isinstance(op, (ast.Gt, ast.GtE)) and hint is a and value > 1) or (
                isinstance(op, ast.Mult) and value == 0
            ):
                for mark in marks:
                    self.trace.hints[mark].off = True
