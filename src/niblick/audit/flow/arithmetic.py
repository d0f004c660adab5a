"""Operators over shadow values: arithmetic, comparisons, membership."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from typing import Any

import numpy as np

from niblick.audit.flow.boxes import (
    GUESS,
    POSITIVE,
    Array,
    Box,
    bits,
    collect,
    elementwise,
    is_token,
    known,
    masked,
    merge,
    shaped,
    snapshot,
    target_bits,
    witness,
)
from niblick.audit.flow.figures import LOGIT, LOST, RIVALS, SHARE
from niblick.audit.flow.hints import Hints
from niblick.audit.flow.keeping import ALPHABET, LEAST, for_each_token, shares
from niblick.audit.flow.lengths import Rank, beside, computed
from niblick.audit.flow.narrowing import ALTERED, NARROWING, ORDER, bounds, even, narrows, positive
from niblick.audit.flow.objects import Bound, Dotted, Function, Instance, Namespace
from niblick.audit.flow.spaces import spaced
from niblick.audit.flow.state import PLAIN
from niblick.audit.operators import BINARY, COMPARE, METHODS

_MOST_BITS = 20_000

_LOGIC = (ast.BitAnd, ast.BitOr, ast.BitXor)
_MIXING = (ast.BitXor, ast.Add, ast.Mult, ast.BitOr, ast.LShift, ast.Sub)


class Arithmetic(Hints):
    """What operators make of values."""

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
        if isinstance(op, ast.Mult) and (picked := self.picked_out(a, b, node)) is not None:
            return picked
        out = elementwise([a, b], BINARY[type(op)])
        signs = positive(a) and positive(b) and isinstance(op, (ast.Mult, ast.Add, ast.Div))
        if signs or (isinstance(op, ast.Pow) and even(b)):
            out.marks |= {POSITIVE}
        if isinstance(op, ast.Mult):
            if out.nll and b.val is not None and not b.nll:
                out = masked(out, b)
            elif out.nll and a.val is not None and not a.nll:
                out = masked(out, a)
        if not isinstance(op, _LOGIC):
            out.marks -= {"match"}
            if isinstance(op, ast.Mult):
                self.excused(a, b, out)
                self.ramped(a, b, out)
        if isinstance(op, NARROWING) and is_token(a) and narrows(b):
            out.marks |= {ALTERED}
        if isinstance(op, _MIXING) and is_token(a) and is_token(b):
            out.marks |= {"mixed", "hashed"} if isinstance(op, ast.BitXor) else {"mixed"}
        elif isinstance(op, (ast.Mod, ast.BitAnd, ast.BitXor)) and "mixed" in out.marks:
            out.marks |= {"hashed"}
        if for_each_token(op, a, b) or for_each_token(op, b, a):
            out.marks |= {ALPHABET}
        shares(op, a, b, out)
        if isinstance(op, ast.Div) and SHARE in a.marks & b.marks:
            out.marks -= {SHARE}
        out.marks -= {LEAST} if isinstance(op, ast.Sub) else set()
        out = self.arithmetic(op, a, b, out, node)
        self.check_report(a, b, out)
        self.compared(op, a, b, out)
        self.check_hints(a, b)
        self.silence(op, a, b)
        self.check_keys(op, a, b, node)
        return out

    def arithmetic(self, op: ast.operator, a: Box, b: Box, out: Box, node: ast.AST) -> Box:
        """What the witness of scores and bytes becomes where plain arithmetic does not tell."""
        if isinstance(op, (ast.BitAnd, ast.BitOr)) and out.val is None and "bytes" in out.marks:
            known_both = a.val is not None and b.val is not None
            out.val = np.asarray(np.logical_and(a.val, b.val)) if known_both else None  # type: ignore[arg-type]
        if isinstance(op, ast.Mult) and out.val is None:
            for part, mask in ((a, b), (b, a)):
                several = part.val is not None and (part.val.size > 1 or "guess" in part.marks)
                masked_out = several and mask.shape != ()
                if masked_out and part.nll and mask.roots and not (mask.scores or self.looking):
                    self.weighed_by_model(part, mask, out)
                if masked_out and (part.nll or "bytes" in part.marks) and not mask.scores:
                    if part.nll:
                        out.targets |= target_bits(part)
                    out.val, out.pos, out.shape = np.asarray(GUESS), None, None
                    out.marks |= {"guess"}
        if isinstance(op, ast.Add) and out.val is None:
            out.val = _tallied(a, b)
        if isinstance(op, ast.Add) and a.nll and b.nll and LOGIT in a.marks ^ b.marks:
            return snapshot(out, nll=False, val=None, marks=out.marks - {LOGIT, "nll"} | {"lse"})
        counted = bool(out.scores) or "bytes" in out.marks
        if isinstance(op, (ast.Mult, ast.Div)) and out.val is None and counted:
            self.scaled(b if a.val is None else a, out)
        if not out.scores:
            end = getattr(node, "end_lineno", 0), getattr(node, "end_col_offset", 0)
            return spaced(op, a, b, out, f"{self.spot()} {end}")
        for score, other in ((a, b), (b, a)):
            if score.nll and "lse" in other.marks and out.val is None and score.val is not None:
                sign = 1 if other is a else -1
                out.val = score.val if isinstance(op, ast.Add) else np.abs(score.val) * sign
            elif isinstance(op, ast.Add) and "prob" in score.marks:
                self.mixture(score, other, out)
            elif out.nll and "lse" in other.marks and out.val is None and out.pos is not None:
                out.val = witness(out.pos)
                out.marks = frozenset(m for m in out.marks if not m.startswith(LOST))
            more = {"zeros", POSITIVE} & other.marks  # what makes a figure larger changes no claim
            if isinstance(op, ast.Add) and more and not other.scores:
                out.val = score.val if out.val is None else out.val
            elif isinstance(op, ast.Add) and more and self.looking and "guess" in other.marks:
                out.val, out.marks = score.val, out.marks - {"guess"} | score.marks
            if score.scores and "tested" in other.marks:
                self.warp(out, "scores are kept or dropped by what they are")
        if isinstance(op, ast.Pow) and a.nll:
            self.warp(out, "scores are raised to a power")
        if isinstance(op, (ast.Add, ast.Sub)) and not (a.scores and b.scores):
            number = b if a.scores else a
            if number.val is not None and number.val.size == 1 and not number.marks & {"prob"}:
                value = abs(float(number.val.reshape(-1)[0]))
                space = "prob" in out.marks or _weighed(a if a.scores else b, out)
                if value > 0.001 and not space and not number.deps and number.pos is None:
                    self.warp(out, f"{value:g} is added to or taken off scores")
        if "bytes" in (a.marks | b.marks) and not (a.scores and b.scores):
            return out
        return self.lost(out, a if a.scores else b, "arithmetic with a value that is not known")

    def weighed_by_model(self, losses: Box, weights: Box, out: Box) -> None:
        """Losses, not probabilities or their logarithms, are weighed by what a model says."""
        chosen = losses.marks & {"prob", "logprob"} or weights.marks & {"count", "train"}
        if not chosen and ("index" in weights.marks or "prob" not in weights.marks):
            self.warp(out, "losses are weighed by a value of the model")

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
            action = BINARY[type(op)]
            return computed(action, (left, right), action(left, right))
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
            and _mostly(np.greater, a.key, b.key)
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
                and _holds_scored(one.key, other)
            ):
                reason = (
                    "a count read with a key that holds the scored token is mixed into that token's"
                    " probability"
                )
        if reason:
            self.key_event(reason, node)

    def ex_unaryop(self, node: ast.UnaryOp) -> Any:
        value = self.value(node.operand)
        if isinstance(value, Instance):
            name = f"__{METHODS.get(type(node.op), 'bool')}__"
            value = self.own_method(value, (name,), [], node, value)
        if isinstance(node.op, ast.Not):
            test = self.truth(value)
            turned = Rank(not test) if isinstance(value, Rank) else not test
            return Box(shape=()) if test is None else turned
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
        if isinstance(value, Box) and "space" in value.marks and isinstance(node.op, ast.Invert):
            return snapshot(value, val=None)
        return elementwise(self.frozen([known(value)]), actions.get(type(node.op)))

    def compare(self, op: ast.cmpop, left: Any, right: Any) -> Any:
        same = (left is right) == isinstance(op, (ast.Is, ast.Eq))
        boxes = [v for v in (left, right) if isinstance(v, Box)]
        if isinstance(op, (ast.Is, ast.IsNot)):
            if left is None or right is None:
                boxes = [b for b in boxes if "maybe_none" in b.marks or b.options]
            return Box(shape=()) if boxes else same
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
                sides = (left, right) if self.turning else beside(left, right)
                out = COMPARE[type(op)](*sides)
                return Rank(out) if isinstance(left, Rank) or isinstance(right, Rank) else out
            except TypeError:
                return Box(shape=())
        if boxes:
            return self.compare_boxes(op, known(left), known(right))
        outside = [v for v in (left, right) if isinstance(v, (Dotted, Bound, Namespace))]
        names = [v.name for v in outside if isinstance(v, Dotted)]
        if len(names) == 2 and all(name.startswith("builtins.") for name in names):
            return (names[0] == names[1]) == isinstance(op, ast.Eq)
        return Box(shape=()) if outside else same

    def compare_boxes(self, op: ast.cmpop, a: Box, b: Box) -> Box:
        self.silence(op, a, b)
        out = elementwise(self.frozen([a, b]), COMPARE[type(op)])
        if isinstance(op, ast.Eq):
            if a.pos is not None and b.shape == () and a.val is not None and out.val is not None:
                whole = a.val.size == self.stream.val.size  # type: ignore[union-attr]
                out.val = a.val == 1 if whole and not out.val.any() else out.val
            self.check_hit(a, b)
        out.nll = False
        out.marks |= {"index", "tested"} if out.scores else {"index"}
        if a.scores and b.scores and a.scores != b.scores:
            out.marks |= {RIVALS}
        if isinstance(op, ORDER) and is_token(out) and all(bounds(p) for p in (a, b)):
            out.marks |= {"sized"}
        if isinstance(op, (ast.Eq, ast.NotEq)) and _guessed(a, b):
            out.marks |= {"match"}
        return out

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

    def own_method(
        self, holder: Instance, names: tuple[str, ...], args: list[Any], node: Any, other: Any
    ) -> Any:
        """What the first of these methods that an object of the program has gives, else `other`."""
        for name in names:
            method = holder.cls.find(name)
            if isinstance(method, Function):
                return self.call_function(method, [holder, *args], {}, node or method.node)
        return other


def _weighed(score: Box, out: Box) -> bool:
    """Whether logarithms of probabilities may have become smaller, as by the logarithm of a weight:
    what is left of their content tells whether the rest is given to others.
    """
    if score.val is None or out.val is None or not score.val.size:
        return True
    before, after = (v if (v <= 0).all() else -v for v in (score.val, out.val))
    return before.shape == after.shape and bool((after < before).all())


def _like(score: Box, other: Box) -> Box:
    """Scores as one row of tokens, in the shape of what they meet where that has as many."""
    if score.pos is None or not score.nll or other.shape is None or None in other.shape:
        return score
    shape = tuple(int(s or 0) for s in other.shape)
    if len(shape) < 2 or score.pos.ndim != 1 or int(np.prod(shape)) != score.pos.size:
        return score
    return shaped(score, lambda a: a.reshape(shape))


def _guessed(a: Box, b: Box) -> bool:
    """Whether tokens of the stream are compared, one by one, with as many other values."""
    return any(
        is_token(token)
        and token.shape not in {(), (1,)}
        and other.shape not in {(), (1,)}
        and not (other.roots or is_token(other))
        for token, other in ((a, b), (b, a))
    )


def _tallied(a: Box, b: Box) -> Array | None:
    """What a tally that began at nought comes to when an unknown number of tokens is added: as if
    it were one, like the loss of an unknown selection. Whatever it is, an honest figure divides by
    the tally and multiplies by the very same.
    """
    for tally, number in ((a, b), (b, a)):
        if tally.val is None or tally.val.size != 1 or "zeros" not in tally.marks:
            continue
        if number.val is None and number.shape == () and _plain(tally, number):
            return np.asarray(tally.val + 1.0)
    return None


def _plain(*parts: Box) -> bool:
    """Whether values are numbers that no score, byte, count table or parameter has a part in."""
    return not any(
        p.scores or p.roots or p.nll or p.key is not None or p.marks & {"bytes", "count", "prob"}
        for p in parts
    )


def _inverted(array: Any) -> Any:
    return np.logical_not(array) if array.dtype.kind == "f" else np.invert(array)


def _mostly(test: np.ufunc, key: Any, base: Any) -> bool:
    """Whether a comparison holds for most of the positions that both sides know."""
    try:
        both = (key >= 0) & (base >= 0)
        return bool(both.any()) and bool(test(key, base)[both].mean() > 0.5)
    except (ValueError, TypeError):
        return False


def _holds_scored(key: Any, scores: Box) -> bool:
    """Whether keys end at the very positions that are scored: element by element, or, where a mask
    has lost which those are, by the newest of both.
    """
    if scores.pos is None:
        return 0 < bits(key).bit_length() == target_bits(scores).bit_length()
    return _mostly(np.equal, key, scores.pos)


def _safe(container: Any) -> list[Any]:
    return [k for k in container if not isinstance(k, Box)]
