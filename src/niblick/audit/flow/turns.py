"""Loops and comprehensions over plain numbers, run whole in one go.

What they compute (the windows of a stream, the chunk that each belongs to) decides which tokens are
scored when. They touch no tensor and call nothing of the program, so that their expressions can
become closures over one dictionary of names and every turn be taken. A value that is more than
plain, an operation of another kind or an exception leaves the loop to the engine, as it was.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import Any

from niblick.audit.flow.objects import Dotted
from niblick.audit.flow.signals import NotPlainError
from niblick.audit.operators import BINARY, COMPARE

Names = dict[str, Any]
Step = Callable[[Names], Any]
_OPERATIONS = (ast.Add, ast.Sub, ast.Mult, ast.FloorDiv, ast.Mod, ast.Div)
_BUILTINS: dict[str, Callable[..., Any]] = {
    f"builtins.{f.__name__}": f for f in (min, max, len, abs, int, bool)
}
_UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Not: operator.not_,
}
_FEW, _MOST_TURNS, _MOST_BITS, _DEPTH, _SHIFT = 64, 200_000, 256, 3, 4
_NEXT, _CONTINUE, BREAK = range(3)


class Turns:
    """One loop or comprehension as closures; `around` gives what a name or an attribute that it
    only reads stands for.
    """

    def __init__(self, node: ast.AST, around: Callable[[ast.expr], Any]) -> None:
        self.around = around
        inside = list(ast.walk(node))
        self.own = {n.id for n in inside if isinstance(n, ast.Name) and _stored(n)}
        self.names: Names = {}
        for name in self.own:
            with suppress(NotPlainError):
                self.names[name] = _plain(around(ast.Name(name, ast.Load())))
        self.size = len(inside)
        self.turns = 0
        self.kept: list[tuple[list[Any], list[Any]]] = []

    def loop(self, node: ast.For | ast.AsyncFor | ast.While, items: Iterable[Any]) -> Names:
        """The names as the loop leaves them."""
        body = self.block(node.body)
        target = self.target(node.target) if isinstance(node, (ast.For, ast.AsyncFor)) else None
        test = self.expression(node.test) if isinstance(node, ast.While) else None
        try:
            for item in items:
                if target is not None:
                    target(item)
                elif test is not None and not test(self.names):
                    break
                self.turn()
                if body(self.names) == BREAK:
                    break
            return self.names
        except Exception as error:
            for changed, before in self.kept:
                changed[:] = before
            raise NotPlainError from error

    def listed(
        self, node: ast.ListComp | ast.GeneratorExp | ast.SetComp, items: Iterable[Any]
    ) -> list[Any]:
        """The items of a comprehension with one clause."""
        clause = node.generators[0]
        target, out = self.target(clause.target), []
        tests = [self.expression(test) for test in clause.ifs]
        element = self.expression(node.elt)
        try:
            for item in items:
                target(item)
                self.turn()
                if all(test(self.names) for test in tests):
                    out.append(element(self.names))
        except Exception as error:
            raise NotPlainError from error
        return out

    @property
    def work(self) -> int:
        """How many steps the turns taken count as."""
        return self.turns * self.size >> _SHIFT

    def turn(self) -> None:
        self.turns += 1
        if self.turns > _MOST_TURNS:
            raise NotPlainError

    def block(self, body: list[ast.stmt]) -> Step:
        steps = [self.statement(each) for each in body]

        def run(names: Names) -> int:
            for step in steps:
                ended = step(names)
                if ended:
                    return int(ended)
            return _NEXT

        return run

    def statement(self, node: ast.stmt) -> Step:
        if isinstance(node, (ast.Pass, ast.Continue, ast.Break)):
            ended = {ast.Continue: _CONTINUE, ast.Break: BREAK}.get(type(node), _NEXT)
            return lambda names: ended
        if isinstance(node, ast.Raise):
            return _raised
        if isinstance(node, ast.If):
            test = self.expression(node.test)
            then, other = self.block(node.body), self.block(node.orelse)
            return lambda names: then(names) if test(names) else other(names)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            return self.append(node.value)
        if isinstance(node, ast.AugAssign):
            read = ast.BinOp(_loaded(node.target), node.op, node.value)
            return self.assign(node.target, self.expression(read))
        target = getattr(node, "targets", [getattr(node, "target", None)])
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value and len(target) == 1:
            return self.assign(target[0], self.expression(node.value))
        raise NotPlainError

    def assign(self, target: ast.expr, value: Step) -> Step:
        if isinstance(target, ast.Subscript):
            holder, key = self.changed(target.value), self.expression(target.slice)

            def put(names: Names) -> None:
                holder(names)[key(names)] = value(names)

            return put
        store = self.target(target)
        return lambda names: store(value(names))

    def target(self, node: ast.expr) -> Callable[[Any], None]:
        if isinstance(node, ast.Name):
            name = node.id

            def store(value: Any) -> None:
                self.names[name] = value

            return store
        if isinstance(node, (ast.Tuple, ast.List)):
            parts = [self.target(part) for part in node.elts]

            def unpack(value: Any) -> None:
                for part, each in zip(parts, value, strict=True):
                    part(each)

            return unpack
        raise NotPlainError

    def append(self, node: ast.Call) -> Step:
        plain = isinstance(node.func, ast.Attribute) and node.func.attr == "append"
        if not plain or len(node.args) != 1 or node.keywords:
            raise NotPlainError
        holder, value = self.changed(node.func.value), self.expression(node.args[0])  # type: ignore[attr-defined]
        return lambda names: holder(names).append(value(names))

    def changed(self, node: ast.expr) -> Step:
        """A list that the loop writes to; its content is remembered."""
        name = node.value if isinstance(node, ast.Subscript) else node
        if not isinstance(name, ast.Name) or name.id in self.own:
            raise NotPlainError
        whole = self.around(name)
        for each in [whole, *whole] if isinstance(whole, list) else []:
            if isinstance(each, list):
                self.kept.append((each, list(each)))
        return self.expression(node)

    def expression(self, node: ast.expr) -> Step:
        if isinstance(node, ast.Constant):
            constant = _plain(node.value)
            return lambda names: constant
        if isinstance(node, ast.Name) and node.id in self.own:
            return operator.itemgetter(node.id)
        if isinstance(node, (ast.Name, ast.Attribute)):
            value = _plain(self.around(node))
            return lambda names: value
        inside = node.args if isinstance(node, ast.Call) else ast.iter_child_nodes(node)
        action = None if isinstance(node, (ast.BoolOp, ast.IfExp)) else self.action(node)
        parts = [self.expression(part) for part in inside if isinstance(part, ast.expr)]
        if isinstance(node, ast.IfExp):
            test, then, other = parts
            return lambda names: then(names) if test(names) else other(names)
        if isinstance(node, ast.BoolOp):
            return partial(_joined, parts, isinstance(node.op, ast.Or))
        if len(parts) == 2:
            left, right = parts
            return lambda names: action(left(names), right(names))  # type: ignore[misc]
        return lambda names: action(*[part(names) for part in parts])  # type: ignore[misc]

    def action(self, node: ast.expr) -> Callable[..., Any]:
        """What an expression makes of the values of its parts."""
        if isinstance(node, ast.BinOp) and isinstance(node.op, _OPERATIONS):
            return partial(_computed, BINARY[type(node.op)])
        if isinstance(node, ast.UnaryOp) and type(node.op) in _UNARY:
            return _UNARY[type(node.op)]
        if isinstance(node, ast.Compare) and len(node.ops) == 1:
            return COMPARE[type(node.ops[0])]
        if isinstance(node, ast.Subscript) and not isinstance(node.slice, ast.Slice):
            return operator.getitem
        if isinstance(node, ast.Tuple) and isinstance(node.ctx, ast.Load):
            return lambda *items: items
        name = node.func if isinstance(node, ast.Call) and node.args and not node.keywords else None
        free = isinstance(name, ast.Name) and name.id not in self.own
        called = self.around(name) if name is not None and free else None
        if isinstance(called, Dotted) and called.name in _BUILTINS:
            return _BUILTINS[called.name]
        raise NotPlainError


def _raised(names: Names) -> Any:
    raise NotPlainError


def _joined(parts: list[Step], stop: bool, names: Names) -> Any:
    """The value of `and` or `or`, which ends at the first part that is as true as `stop`."""
    value = None
    for part in parts:
        value = part(names)
        if bool(value) == stop:
            break
    return value


def _computed(action: Callable[[Any, Any], Any], a: Any, b: Any) -> Any:
    if not (isinstance(a, (int, float)) and isinstance(b, (int, float))):
        raise NotPlainError
    out = action(a, b)
    if isinstance(out, int) and out.bit_length() > _MOST_BITS:
        raise NotPlainError
    return out


def plain_items(items: Any) -> list[Any] | None:
    """The items of a long loop, if all are plain."""
    if not isinstance(items, (list, tuple, range)) or not _FEW < len(items) <= _MOST_TURNS:
        return None
    try:
        return list(items) if isinstance(items, range) else [_plain(item) for item in items]
    except NotPlainError:
        return None


class Whole(list[Any]):
    """A list of which no item is left out."""


def are_known(items: Any) -> bool:
    """Whether a loop goes over all that there is: a whole list, plain numbers or tuples of them, as
    far as looked at.
    """
    if isinstance(items, (range, Whole)):
        return True
    with suppress(NotPlainError):
        return isinstance(items, list) and bool(_plain([*items[:2], *items[-2:]]))
    return False


def _plain(value: Any, depth: int = _DEPTH) -> Any:
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, (list, tuple)) and depth:
        for part in value:
            _plain(part, depth - 1)
        return value
    raise NotPlainError


def _stored(node: ast.Name) -> bool:
    return not isinstance(node.ctx, ast.Load)


def _loaded(target: ast.expr) -> ast.expr:
    """A target as what is read from there."""
    if isinstance(target, ast.Name):
        return ast.Name(target.id, ast.Load())
    if isinstance(target, ast.Subscript):
        return ast.Subscript(target.value, target.slice, ast.Load())
    raise NotPlainError
