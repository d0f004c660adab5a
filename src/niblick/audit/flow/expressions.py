"""The engine's expressions, and the state every part of the engine shares."""

from __future__ import annotations

import ast
from collections.abc import Callable
from contextlib import suppress
from pathlib import PurePosixPath
from typing import Any

from niblick.audit.flow.arithmetic import Arithmetic
from niblick.audit.flow.boxes import Box, collect, merge
from niblick.audit.flow.figures import PLAUSIBLE, named
from niblick.audit.flow.growing import between
from niblick.audit.flow.joining import joined
from niblick.audit.flow.lengths import Perhaps, Rank
from niblick.audit.flow.objects import Bound, Function, Module
from niblick.audit.flow.signals import AbortSignal, NotPlainError
from niblick.audit.flow.trials import as_kept
from niblick.audit.flow.turns import Turns, plain_items

_MAX_ITEMS, _MOST_FILLED = 1600, 4096


class Expressions(Arithmetic):
    """State of a run, and the value of every kind of expression."""

    def value(self, node: ast.expr) -> Any:
        self.tick(node)
        kind = type(node)
        if kind is ast.Constant:
            return node.value  # type: ignore[attr-defined]
        if kind is ast.Name:
            return self.touch(self.lookup(node.id))  # type: ignore[attr-defined]
        handler = getattr(self, f"ex_{kind.__name__.lower()}", None)
        return self.charged(self.touch(handler(node))) if handler is not None else Box()

    def ex_attribute(self, node: ast.Attribute) -> Any:
        found = self.member(node)
        if isinstance(found, Bound) and found.name == "size" and isinstance(found.holder, Box):
            return self.reshaping("numel", found.holder, [found.holder], {})
        return found

    def member(self, node: ast.expr) -> Any:
        """What is called: `size` of an array is a number where it is not."""
        if not isinstance(node, ast.Attribute):
            return self.value(node)
        self.cleared = self.cleared or node.attr == "cache_clear"
        return self.attribute(self.value(node.value), node.attr, node)

    def ex_binop(self, node: ast.BinOp) -> Any:
        return self.binary(node.op, self.value(node.left), self.value(node.right), node)

    def ex_boolop(self, node: ast.BoolOp) -> Any:
        stop = isinstance(node.op, ast.Or)
        unknown: list[Any] = []
        for part in node.values:
            value = self.value(part)
            test = self.truth(value)
            if test is None:
                unknown.append(value)
            elif test == stop:
                return Box(shape=()) if unknown and stop and isinstance(value, bool) else value
        if unknown and isinstance(unknown[-1], Box):
            return merge(collect(unknown), shape=())
        return unknown[-1] if unknown else value

    def ex_compare(self, node: ast.Compare) -> Any:
        left = self.value(node.left)
        out: Any = True
        for op, comparator in zip(node.ops, node.comparators, strict=True):
            right = self.value(comparator)
            out = self.compare(op, left, right)
            if out is False or (isinstance(out, Rank) and not out):
                return self.forced.get(id(node), out)
            left = right
        return self.forced.get(id(node), out) if isinstance(out, bool) else out

    def ex_ifexp(self, node: ast.IfExp) -> Any:
        condition = self.value(node.test)
        test = self.truth(condition)
        if test is not None:
            return self.value(node.body if test else node.orelse)
        tried = self.tried(node, condition)
        self.uncertain += 1
        try:
            first, second = self.value(node.body), self.value(node.orelse)
        finally:
            self.uncertain -= 1
        if (
            isinstance(condition, Box)
            and "space" in condition.marks
            and {0, 1} == _plain(first, second)
        ):
            return Box(shape=(), marks=frozenset({"bytes", "space"}))
        return as_kept(joined(first, second), tried, self.told(condition), self.line)

    def ex_tuple(self, node: ast.Tuple) -> Any:
        return tuple(self.elements(node.elts))

    def ex_list(self, node: ast.List) -> Any:
        return self.elements(node.elts)

    def ex_set(self, node: ast.Set) -> Any:
        items = self.elements(node.elts)
        try:
            return set(items)
        except TypeError:
            return items

    def elements(self, nodes: list[ast.expr]) -> list[Any]:
        out: list[Any] = []
        for item in nodes:
            if isinstance(item, ast.Starred):
                out.extend(self.iterate(self.value(item.value), None))
            else:
                out.append(self.value(item))
        return out

    def ex_dict(self, node: ast.Dict) -> Any:
        out: dict[Any, Any] = {}
        for key_node, value_node in zip(node.keys, node.values, strict=True):
            value = self.value(value_node)
            if key_node is None:
                out.update(value if isinstance(value, dict) else {})
            else:
                out[self.plain_key(self.value(key_node))] = value
        return out

    def ex_joinedstr(self, node: ast.JoinedStr) -> Any:
        parts: list[str] = []
        values: list[tuple[str, frozenset[int], str]] = []
        figure, words = False, ""
        for piece in node.values:
            if isinstance(piece, ast.Constant):
                words = str(piece.value).strip()
                parts.append(str(piece.value))
                continue
            value = self.value(piece.value if isinstance(piece, ast.FormattedValue) else piece)
            if isinstance(piece, ast.FormattedValue) and piece.format_spec is not None:
                self.value(piece.format_spec)
            label = parts[-1] if parts else ""
            if isinstance(value, float) and parts and PLAUSIBLE[0] < value < PLAUSIBLE[1]:
                self.constant_shown(label)
            if isinstance(value, Box):
                self.shown(value, label)
                figure |= named(label)
            told = isinstance(value, (str, int, float, PurePosixPath))
            parts.append(str(value) if told else "?")
            scores = value.scores if isinstance(value, Box) else frozenset[int]()
            values.append((words, scores, value.strip() if isinstance(value, str) else ""))
            words = ""
        if (figure or any(s for _, s, _ in values)) and len(self.trace.printed) < _MAX_ITEMS:
            self.trace.printed.append((tuple(values), words))
        return "".join(parts)

    def ex_lambda(self, node: ast.Lambda) -> Any:
        return Function(node, self.scopes[-1], "<lambda>")

    def ex_namedexpr(self, node: ast.NamedExpr) -> Any:
        value = self.value(node.value)
        self.assign(node.target, value)
        return value

    def ex_starred(self, node: ast.Starred) -> Any:
        return self.value(node.value)

    def ex_await(self, node: ast.Await) -> Any:
        return self.value(node.value)

    def ex_yield(self, node: ast.Yield) -> Any:
        if self.yields:
            self.yields[-1].append(None if node.value is None else self.value(node.value))
            if len(self.yields[-1]) >= 6:
                self.trace.unsure(0)
                raise AbortSignal
        return None

    def ex_yieldfrom(self, node: ast.YieldFrom) -> Any:
        if self.yields:
            self.yields[-1].extend(self.iterate(self.value(node.value), None)[:6])
        return None

    def ex_slice(self, node: ast.Slice) -> Any:
        return slice(
            *[None if p is None else self.value(p) for p in (node.lower, node.upper, node.step)]
        )

    def ex_subscript(self, node: ast.Subscript) -> Any:
        return self.item(self.value(node.value), self.value(node.slice), node)

    def ex_listcomp(self, node: ast.ListComp | ast.GeneratorExp | ast.SetComp) -> Any:
        out: list[Any] = []
        items = self.value(node.generators[0].iter)
        sequence = plain_items(items) if len(node.generators) == 1 else None
        if sequence is not None:
            with suppress(NotPlainError):
                turns = Turns(node, self.around)
                whole = turns.listed(node, sequence)
                self.trace.steps += turns.work
                return whole
        parts = node.generators
        sure = self.generate(parts, lambda: out.append(self.value(node.elt)), out, items)
        return Perhaps(out) if out and not sure and isinstance(node, ast.ListComp) else out

    ex_generatorexp = ex_listcomp

    def ex_setcomp(self, node: ast.SetComp) -> Any:
        items = self.ex_listcomp(node)
        out = set(items) if all(isinstance(i, (int, str, float)) for i in items) else items
        self.keep(out, items)
        return out

    def ex_dictcomp(self, node: ast.DictComp) -> Any:
        out: dict[Any, Any] = {}
        self.generate(
            node.generators,
            lambda: out.__setitem__(self.plain_key(self.value(node.key)), self.value(node.value)),
            out,
            self.value(node.generators[0].iter),
        )
        self.keep(out, list(out), list(out.values()))
        return out

    def generate(
        self, parts: list[ast.comprehension], emit: Callable[[], None], out: Any, items: Any
    ) -> int:
        """Runs the clauses of a comprehension, the first over `items`, in a scope of their own; how
        many items no condition leaves out.
        """
        self.scopes.append(({}, *self.scopes[-1]))
        try:
            return self.clause(parts, emit, out, items)
        finally:
            self.scopes.pop()

    def clause(
        self, parts: list[ast.comprehension], emit: Callable[[], None], out: Any, items: Any
    ) -> int:
        surely, sums = 0, len(self.trace.sums)
        for item in self.iterate(items, None):
            mark = self.interest
            self.assign(parts[0].target, item)
            tests = [self.truth(self.value(test)) for test in parts[0].ifs]
            if False not in tests:
                inside = 1
                if parts[1:]:
                    inside = self.clause(parts[1:], emit, out, self.value(parts[1].iter))
                else:
                    emit()
                surely += inside * (None not in tests)
            if len(out) > _MOST_FILLED or (self.interest != mark and len(out) > 3):
                if not parts[1:] and not parts[0].ifs and isinstance(out, list):
                    self.fill_up(parts[0], emit, out, self.iterate(items, None))
                self.trace.unsure(sums)
                break
        return surely

    def fill_up(
        self, part: ast.comprehension, emit: Callable[[], None], out: list[Any], items: list[Any]
    ) -> None:
        """The items of a long list that are like those before, where their places lie evenly."""
        left = len(items) - len(out)
        if 0 < left <= _MOST_FILLED and len({id(i) for i in items[-2:]}) > 1:
            self.assign(part.target, items[-1])
            self.trace.jump()
            emit()
            *_, before, one, last = out
            out[-1:] = [*between(before, one, last, left), last] if left > 1 else [last]
            if len(out) < len(items):
                out.pop()


def _plain(*values: Any) -> set[float]:
    """The plain numbers among values."""
    return {v for v in values if isinstance(v, (int, float))}


__all__ = ["Bound", "Expressions", "Module"]
