"""The engine's expressions, and the state every part of the engine shares."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from niblick.audit.flow.boxes import (
    GUESS,
    Box,
    collect,
    elementwise,
    is_token,
    known,
    masked,
    merge,
    shaped,
    target_bits,
    witness,
)
from niblick.audit.flow.figures import LOST
from niblick.audit.flow.hints import Hints
from niblick.audit.flow.joining import joined
from niblick.audit.flow.objects import (
    Bound,
    Dotted,
    Function,
    Instance,
    KeyEvent,
    Module,
    Namespace,
)
from niblick.audit.flow.signals import AbortSignal
from niblick.audit.flow.state import PLAIN
from niblick.audit.operators import BINARY, COMPARE, METHODS

_MAX_ITEMS = 1600
_MOST_BITS = 20_000
_MIXING = (ast.BitXor, ast.Add, ast.Mult, ast.BitOr, ast.LShift, ast.Sub)


class Expressions(Hints):
    """State of a run, and the value of every kind of expression."""

    def value(self, node: ast.expr) -> Any:
        self.tick(node)
        kind = type(node)
        if kind is ast.Constant:
            return node.value  # type: ignore[attr-defined]
        if kind is ast.Name:
            return self.lookup(node.id)  # type: ignore[attr-defined]
        handler = getattr(self, f"ex_{kind.__name__.lower()}", None)
        return self.charged(handler(node)) if handler is not None else Box()

    def ex_attribute(self, node: ast.Attribute) -> Any:
        return self.attribute(self.value(node.value), node.attr, node)

    def ex_binop(self, node: ast.BinOp) -> Any:
        return self.binary(node.op, self.value(node.left), self.value(node.right), node)

    def binary(
        self, op: ast.operator, left: Any, right: Any, node: ast.AST, in_place: bool = False
    ) -> Any:
        if isinstance(left, PLAIN) and isinstance(right, PLAIN):
            return self.plain_binary(op, left, right)
        if isinstance(left, Instance) or isinstance(right, Instance):
            name = METHODS[type(op)]
            names = (f"__i{name}__", f"__{name}__") if in_place else (f"__{name}__",)
            unknown = merge(self.frozen(collect(left) + collect(right)))
            if isinstance(left, Instance):
                return self.own_method(left, names, [right], node, unknown)
            return self.own_method(right, (f"__r{name}__",), [left], node, unknown)
        if isinstance(left, (list, tuple)) and isinstance(op, (ast.Add, ast.Mult)):
            return self.iterate(left, None) + (
                self.iterate(right, None) if isinstance(op, ast.Add) else []
            )
        if isinstance(left, str) or isinstance(right, str):
            return merge(self.frozen(collect(left) + collect(right)))
        a, b = self.frozen([known(left)])[0], self.frozen([known(right)])[0]
        a, b = _like(a, b), _like(b, a)
        out = elementwise([a, b], BINARY[type(op)])
        if isinstance(op, ast.Mult):
            if out.nll and b.val is not None and not b.nll:
                out = masked(out, b)
            elif out.nll and a.val is not None and not a.nll:
                out = masked(out, a)
        if isinstance(op, _MIXING) and is_token(a) and is_token(b):
            out.marks |= {"mixed", "hashed"} if isinstance(op, ast.BitXor) else {"mixed"}
        elif isinstance(op, (ast.Mod, ast.BitAnd, ast.BitXor)) and "mixed" in out.marks:
            out.marks |= {"hashed"}
        out = self.arithmetic(op, a, b, out)
        self.check_report(a, b, out)
        self.check_hints(a, b)
        self.silence(op, a, b)
        self.check_keys(op, a, b, node)
        return out

    def arithmetic(self, op: ast.operator, a: Box, b: Box, out: Box) -> Box:
        """What the witness of scores and bytes becomes where plain arithmetic does not tell."""
        if isinstance(op, (ast.BitAnd, ast.BitOr)) and out.val is None and "bytes" in out.marks:
            known_both = a.val is not None and b.val is not None
            out.val = np.asarray(np.logical_and(a.val, b.val)) if known_both else None  # type: ignore[arg-type]
        if isinstance(op, ast.Mult) and out.val is None:
            for part, mask in ((a, b), (b, a)):
                several = part.val is not None and (part.val.size > 1 or "guess" in part.marks)
                masked_out = several and mask.shape != ()
                if masked_out and (part.nll or "bytes" in part.marks) and not mask.scores:
                    if part.nll:
                        out.targets |= target_bits(part)
                    out.val, out.pos, out.shape = np.asarray(GUESS), None, None
                    out.marks |= {"guess"}
        if not out.scores:
            return out
        for score, other in ((a, b), (b, a)):
            if score.nll and "lse" in other.marks and out.val is None and score.val is not None:
                out.val = np.abs(score.val) * (1 if other is a else -1)
            elif isinstance(op, ast.Add) and "prob" in score.marks:
                self.mixture(score, other, out)
            elif out.nll and "lse" in other.marks and out.val is None and out.pos is not None:
                out.val = witness(out.pos)
                out.marks = frozenset(m for m in out.marks if not m.startswith(LOST))
            if score.scores and "tested" in other.marks:
                self.warp(out, "scores are kept or dropped by what they are")
        if isinstance(op, ast.Pow) and a.nll:
            self.warp(out, "scores are raised to a power")
        if isinstance(op, (ast.Add, ast.Sub)) and not (a.scores and b.scores):
            number = b if a.scores else a
            if number.val is not None and number.val.size == 1 and not number.marks & {"prob"}:
                value = abs(float(number.val.reshape(-1)[0]))
                space = "prob" in out.marks
                if value > 0.001 and not space and not number.deps and number.pos is None:
                    self.warp(out, f"{value:g} is added to or taken off scores")
        return self.lost(out, a if a.scores else b, "arithmetic with a value that is not known")

    def plain_binary(self, op: ast.operator, left: Any, right: Any) -> Any:
        if (
            isinstance(op, (ast.Pow, ast.LShift))
            and isinstance(right, (int, float))
            and abs(right) > 4096
        ):
            return Box(shape=())
        if isinstance(left, int) and left.bit_length() > _MOST_BITS:
            return Box(shape=())
        if isinstance(op, ast.Mult):
            sizes = [len(v) for v in (left, right) if isinstance(v, (str, bytes, list, tuple))]
            counts = [v for v in (left, right) if isinstance(v, int)]
            if sizes and counts and sizes[0] * counts[0] > 1_000_000:
                return Box()
        if isinstance(op, ast.Mod) and isinstance(left, (str, bytes)):
            self.shown_all(right, str(left))
            return "?"
        try:
            return BINARY[type(op)](left, right)
        except ZeroDivisionError:
            return Box(shape=())
        except (TypeError, ValueError, OverflowError):
            return merge(collect(left) + collect(right))

    def check_keys(self, op: ast.operator, a: Box, b: Box, node: ast.AST) -> None:
        """A count read by context-and-target over a count read by context, or mixed into that
        target's own score.
        """
        if a.key is None and b.key is None:
            return
        reason = ""
        if (
            isinstance(op, ast.Div)
            and a.key is not None
            and b.key is not None
            and "hashed" in a.marks
            and _ahead(a.key, b.key, 1)
        ):
            reason = (
                "a count read with a key that holds the next token is divided by the count of its"
                " context"
            )
        for one, other in ((a, b), (b, a)):
            if (
                one.key is not None
                and "hashed" in one.marks
                and other.nll
                and other.pos is not None
                and (_ahead(one.key, other.pos, 0))
            ):
                reason = (
                    "a count read with a key that holds the scored token is mixed into that token's"
                    " probability"
                )
        if reason:
            self.interest += 1
            self.order += 1
            self.trace.keys.append(
                KeyEvent(
                    order=self.order,
                    where=self.where(node),
                    certain=self.uncertain <= 0,
                    reason=reason,
                )
            )

    def ex_unaryop(self, node: ast.UnaryOp) -> Any:
        value = self.value(node.operand)
        if isinstance(value, Instance):
            name = f"__{METHODS.get(type(node.op), 'bool')}__"
            value = self.own_method(value, (name,), [], node, value)
        if isinstance(node.op, ast.Not):
            test = self.truth(value)
            return Box(shape=()) if test is None else not test
        if isinstance(value, (int, float)):
            return (
                -value
                if isinstance(node.op, ast.USub)
                else (
                    ~value if isinstance(node.op, ast.Invert) and isinstance(value, int) else value
                )
            )
        actions: dict[type[ast.unaryop], Callable[..., Any]] = {
            ast.USub: operator.neg,
            ast.Invert: _inverted,
            ast.UAdd: operator.pos,
        }
        return elementwise(self.frozen([known(value)]), actions.get(type(node.op)))

    def ex_boolop(self, node: ast.BoolOp) -> Any:
        stop = isinstance(node.op, ast.Or)
        unknown: list[Any] = []
        for part in node.values:
            value = self.value(part)
            test = self.truth(value)
            if test is None:
                unknown.append(value)
            elif test == stop:
                return (
                    value
                    if not unknown or not stop
                    else Box(shape=())
                    if isinstance(value, bool)
                    else value
                )
        if unknown:
            return (
                unknown[-1]
                if not isinstance(unknown[-1], Box)
                else merge(collect(unknown), shape=())
            )
        return value

    def ex_compare(self, node: ast.Compare) -> Any:
        left = self.value(node.left)
        out: Any = True
        for op, comparator in zip(node.ops, node.comparators, strict=True):
            right = self.value(comparator)
            out = self.compare(op, left, right)
            if out is False:
                return False
            left = right
        return out

    def compare(self, op: ast.cmpop, left: Any, right: Any) -> Any:
        if isinstance(op, (ast.Is, ast.IsNot)):
            if left is None or right is None:
                other = right if left is None else left
                if isinstance(other, Box) and "maybe_none" in other.marks:
                    return Box(shape=())
                return (left is right) == isinstance(op, ast.Is)
            return (
                Box(shape=())
                if isinstance(left, Box) or isinstance(right, Box)
                else ((left is right) == isinstance(op, ast.Is))
            )
        if isinstance(op, (ast.In, ast.NotIn)):
            if isinstance(right, Instance):
                return self.own_method(right, ("__contains__",), [left], None, Box(shape=()))
            return self.contains(op, left, right)
        if isinstance(left, Instance) and type(op) in METHODS:
            name = f"__{METHODS[type(op)]}__"
            if isinstance(left.cls.find(name), Function):
                return self.own_method(left, (name,), [right], None, Box(shape=()))
        if isinstance(left, PLAIN) and isinstance(right, PLAIN):
            try:
                return COMPARE[type(op)](left, right)
            except TypeError:
                return Box(shape=())
        if isinstance(left, Box) or isinstance(right, Box):
            a, b = known(left), known(right)
            self.silence(op, a, b)
            out = elementwise(self.frozen([a, b]), COMPARE[type(op)])
            if (
                isinstance(op, ast.Eq)
                and a.pos is not None
                and b.shape == ()
                and a.val is not None
                and out.val is not None
                and (
                    a.val.size == self.stream.val.size and not out.val.any()  # type: ignore[union-attr]
                )
            ):
                out.val = a.val == 1
            if isinstance(op, ast.Eq):
                self.check_hit(a, b)
            out.nll = False
            out.marks |= {"index", "tested"} if out.scores else {"index"}
            return out
        if (
            isinstance(left, Dotted)
            and isinstance(right, Dotted)
            and all(d.name.startswith("builtins.") for d in (left, right))
        ):
            return (left.name == right.name) == isinstance(op, ast.Eq)
        if isinstance(left, (Dotted, Bound, Namespace)) or isinstance(
            right, (Dotted, Bound, Namespace)
        ):
            return Box(shape=())
        return (left is right) == isinstance(op, ast.Eq)

    def contains(self, op: ast.cmpop, left: Any, right: Any) -> Any:
        if isinstance(right, Dotted) and right.name.endswith("environ"):
            present = left in self.environment or left in {"RANK", "WORLD_SIZE", "LOCAL_RANK"}
            return present == isinstance(op, ast.In)
        if held := self.kept(right):
            return merge([*collect(left), Box(held=held)], shape=())
        if isinstance(left, PLAIN) and isinstance(
            right, (str, bytes, list, tuple, dict, set, range)
        ):
            if collect(right) and left not in _safe(right):
                return Box(shape=())
            try:
                return (left in right) == isinstance(op, ast.In)
            except TypeError:
                return Box(shape=())
        return merge(collect(left) + collect(right), shape=())

    def ex_ifexp(self, node: ast.IfExp) -> Any:
        test = self.truth(self.value(node.test))
        if test is not None:
            return self.value(node.body if test else node.orelse)
        self.uncertain += 1
        try:
            first, second = self.value(node.body), self.value(node.orelse)
        finally:
            self.uncertain -= 1
        return joined(first, second)

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
        scores: frozenset[int] = frozenset()
        for piece in node.values:
            value = self.value(piece.value if isinstance(piece, ast.FormattedValue) else piece)
            if isinstance(value, Box):
                self.shown(value, "".join(parts[-3:]))
                scores |= value.scores
                parts.append("?")
            else:
                parts.append(
                    str(value) if isinstance(value, (str, int, float, PurePosixPath)) else "?"
                )
        if scores and len(self.trace.printed) < _MAX_ITEMS:
            words = tuple(
                p.value.strip()
                for p in node.values
                if isinstance(p, ast.Constant) and isinstance(p.value, str)
            )
            self.trace.printed.append((words, scores))
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
        self.generate(node.generators, lambda: out.append(self.value(node.elt)), out)
        return out

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
        )
        self.keep(out, list(out), list(out.values()))
        return out

    def generate(self, parts: list[ast.comprehension], emit: Callable[[], None], out: Any) -> None:
        """Runs the clauses of a comprehension in a scope of their own."""
        self.scopes.append(({}, *self.scopes[-1]))
        try:
            self.clause(parts, emit, out)
        finally:
            self.scopes.pop()

    def clause(self, parts: list[ast.comprehension], emit: Callable[[], None], out: Any) -> None:
        if not parts:
            emit()
            return
        for item in self.iterate(self.value(parts[0].iter), None):
            mark = self.interest
            self.assign(parts[0].target, item)
            if all(self.truth(self.value(test)) is not False for test in parts[0].ifs):
                self.clause(parts[1:], emit, out)
            if len(out) > _MAX_ITEMS or (self.interest != mark and len(out) > 3):
                break

    def own_method(
        self, holder: Instance, names: tuple[str, ...], args: list[Any], node: Any, other: Any
    ) -> Any:
        """What the first of these methods that an object of the program has gives, else `other`."""
        for name in names:
            method = holder.cls.find(name)
            if isinstance(method, Function):
                return self.call_function(method, [holder, *args], {}, node or method.node)
        return other

    def call_function(
        self, function: Function, args: list[Any], named: dict[str, Any], node: ast.AST
    ) -> Any:
        raise NotImplementedError

    def attribute(self, holder: Any, name: str, node: ast.AST) -> Any:
        raise NotImplementedError

    def item(self, holder: Any, key: Any, node: ast.AST) -> Any:
        raise NotImplementedError

    def iterate(self, value: Any, count: int | None) -> list[Any]:
        raise NotImplementedError

    def assign(self, target: ast.expr, value: Any) -> None:
        raise NotImplementedError


def _like(score: Box, other: Box) -> Box:
    """Scores as one row of tokens, in the shape of what they meet where that has as many."""
    if score.pos is None or not score.nll or other.shape is None or None in other.shape:
        return score
    shape = tuple(int(s or 0) for s in other.shape)
    if len(shape) < 2 or score.pos.ndim != 1 or int(np.prod(shape)) != score.pos.size:
        return score
    return shaped(score, lambda a: a.reshape(shape))


def _inverted(array: Any) -> Any:
    return np.logical_not(array) if array.dtype.kind == "f" else np.invert(array)


def _ahead(key: Any, base: Any, step: int) -> bool:
    """Whether most known elements of `key` are exactly `step` positions after those of `base`."""
    try:
        both = (key >= 0) & (base >= 0)
        return bool(both.any()) and bool(((key - base)[both] == step).mean() > 0.5)
    except (ValueError, TypeError):
        return False


def _safe(container: Any) -> list[Any]:
    return [k for k in container if not isinstance(k, Box)]


__all__ = ["Bound", "Expressions", "Module"]
