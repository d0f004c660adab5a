"""A tiny evaluator for loader code: it finds what a packed script would execute, and executes
nothing.

Only literals, names, arithmetic on data, slices, comprehensions, small functions and the decoders
of `codecs` are understood; everything else becomes `UNKNOWN`. Files are virtual. Steps and sizes
are bounded, so a hostile loader ends in `PackError`, never in a hang.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable
from typing import Any

from niblick.audit.operators import BINARY, COMPARE
from niblick.audit.unpack.codecs import MAX_TEXT, PackError
from niblick.audit.unpack.tables import ITERABLE
from niblick.audit.unpack.values import (
    UNKNOWN,
    Dotted,
    Executed,
    Function,
    Handle,
    Loader,
    Space,
    constant,
)

MAX_STEPS = 300_000
_MAX_ITEMS = 200_000


class _Return(Exception):  # noqa: N818 - control flow, not an error
    def __init__(self, value: Any) -> None:
        self.value = value


class _Loop(Exception):  # noqa: N818
    """`break` and `continue`; the argument says which."""


def _guard(value: Any) -> Any:
    """The value, if its size is within bounds."""
    if (
        isinstance(value, (str, bytes, bytearray, list, tuple, dict, set, range))
        and len(value) > MAX_TEXT
    ):
        raise PackError(f"a loader value of {len(value)} items, at most {MAX_TEXT}")
    if isinstance(value, int) and value.bit_length() > 8 * MAX_TEXT:
        raise PackError("a loader integer beyond the bound")
    return value


def _sized(value: Any) -> int:
    return len(value) if hasattr(value, "__len__") else 1


class Evaluator:
    """Evaluates one module's loader code over a shared `Loader` state."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader
        self.line = 0
        self.assumed: tuple[dict[str, Any], str] | None = None

    def run(self, body: Iterable[ast.stmt], scope: dict[str, Any]) -> None:
        """Statements in order; one that cannot be followed is skipped, a `PackError` is not."""
        for statement in body:
            self.statement(statement, scope)

    def tick(self, node: ast.AST) -> None:
        self.loader.steps += 1
        if self.loader.steps > MAX_STEPS:
            raise PackError(f"loader code takes more than {MAX_STEPS} steps")
        self.line = getattr(node, "lineno", self.line)

    def statement(self, node: ast.stmt, scope: dict[str, Any]) -> None:
        self.tick(node)
        if isinstance(node, ast.Expr):
            self.value(node.value, scope)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None:
            value = self.value(node.value, scope)
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                self.assign(target, value, scope)
        elif isinstance(node, ast.AugAssign):
            both = ast.BinOp(left=_load(node.target), op=node.op, right=node.value)
            self.assign(node.target, self.value(both, scope), scope)
        elif isinstance(node, ast.FunctionDef):
            scope[node.name] = Function(node, scope)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            _import(node, scope)
        elif isinstance(node, ast.Return):
            raise _Return(None if node.value is None else self.value(node.value, scope))
        elif isinstance(node, (ast.Break, ast.Continue)):
            raise _Loop(type(node).__name__)
        else:
            self.compound(node, scope)

    def compound(self, node: ast.stmt, scope: dict[str, Any]) -> None:
        if isinstance(node, ast.If):
            self.branch(node, scope)
        elif isinstance(node, ast.For):
            for item in self.items(self.value(node.iter, scope)):
                self.assign(node.target, item, scope)
                if not self.once(node.body, scope):
                    break
        elif isinstance(node, ast.While):
            while (test := self.value(node.test, scope)) is not UNKNOWN and test:
                self.tick(node)
                if not self.once(node.body, scope):
                    break
        elif isinstance(node, ast.With):
            for item in node.items:
                value = self.value(item.context_expr, scope)
                if item.optional_vars is not None:
                    self.assign(item.optional_vars, value, scope)
            self.run(node.body, scope)
        elif isinstance(node, ast.Try):
            self.run([*node.body, *node.orelse, *node.finalbody], scope)

    def branch(self, node: ast.If, scope: dict[str, Any]) -> None:
        """One side of an `if`; both where the test is unknown and an entry of a bundle is
        assumed.
        """
        test = self.value(node.test, scope)
        if test is UNKNOWN and self.assumed is not None:
            try:
                self.run(node.body, scope)
            except _Return as result:
                if result.value not in (None, UNKNOWN):
                    raise
        self.run(node.body if test is not UNKNOWN and test else node.orelse, scope)

    def entry(self, holder: Any) -> Any:
        """The assumed entry of a bundle, where `holder` is that bundle or may be it; else
        `UNKNOWN`.
        """
        if self.assumed is None or not (holder is UNKNOWN or holder is self.assumed[0]):
            return UNKNOWN
        return self.assumed[0][self.assumed[1]]

    def once(self, body: list[ast.stmt], scope: dict[str, Any]) -> bool:
        """One turn of a loop; False after `break`."""
        try:
            self.run(body, scope)
        except _Loop as stop:
            return bool(stop.args[0] == "Continue")
        return True

    def assign(self, target: ast.expr, value: Any, scope: dict[str, Any]) -> None:
        if isinstance(target, ast.Name):
            scope[target.id] = value
        elif isinstance(target, (ast.Tuple, ast.List)):
            items = self.items(value) if value is not UNKNOWN else [UNKNOWN] * len(target.elts)
            for part, item in zip(target.elts, items, strict=False):
                self.assign(part, item, scope)
        elif isinstance(target, ast.Subscript):
            holder, key = self.value(target.value, scope), self.value(target.slice, scope)
            if holder == Dotted("os.environ"):
                self.loader.environment[str(key)] = str(value)
            elif isinstance(holder, (dict, list)) and UNKNOWN is not key:
                try_(lambda: holder.__setitem__(key, value))

    def items(self, value: Any) -> list[Any]:
        if isinstance(value, ITERABLE):
            out = []
            for item in value:
                out.append(item)
                if len(out) > _MAX_ITEMS:
                    raise PackError(f"loader loop over more than {_MAX_ITEMS} items")
            return out
        return []

    def value(self, node: ast.expr, scope: dict[str, Any]) -> Any:
        self.tick(node)
        if isinstance(node, ast.Constant):
            return node.value
        if isinstance(node, ast.Name):
            return scope.get(node.id, Dotted(node.id))
        handler = getattr(self, f"_{type(node).__name__.lower()}", None)
        return _guard(handler(node, scope)) if handler else UNKNOWN

    def _attribute(self, node: ast.Attribute, scope: dict[str, Any]) -> Any:
        holder = self.value(node.value, scope)
        if isinstance(holder, Dotted):
            return Dotted(f"{holder.name}.{node.attr}")
        own = isinstance(holder, Space) and node.attr in {"__dict__", "loader"}
        return holder if own else UNKNOWN

    def _binop(self, node: ast.BinOp, scope: dict[str, Any]) -> Any:
        left, right = (constant(self.value(side, scope)) for side in (node.left, node.right))
        if UNKNOWN in (left, right) if not isinstance(left, Handle) else True:
            return UNKNOWN
        if isinstance(node.op, ast.Div) and isinstance(left, str) and isinstance(right, str):
            return f"{left}/{right}"
        if isinstance(node.op, (ast.Mult, ast.LShift)):
            size = _sized(left) * (right if isinstance(right, int) else 1) * (_sized(right) or 1)
            if isinstance(left, int) and not isinstance(right, int):
                size = left * _sized(right)
            if (
                not isinstance(left, int)
                or not isinstance(right, int)
                or isinstance(node.op, ast.LShift)
            ) and (size > MAX_TEXT):
                raise PackError(f"a loader value of {size} items, at most {MAX_TEXT}")
        if isinstance(node.op, ast.Mod) and isinstance(left, (str, bytes)):
            return UNKNOWN
        action = BINARY.get(type(node.op))
        return try_(lambda: action(left, right)) if action else UNKNOWN

    def _unaryop(self, node: ast.UnaryOp, scope: dict[str, Any]) -> Any:
        value = self.value(node.operand, scope)
        if isinstance(node.op, ast.Not):
            return UNKNOWN if value is UNKNOWN else not value
        return (
            -value if isinstance(node.op, ast.USub) and isinstance(value, (int, float)) else UNKNOWN
        )

    def _compare(self, node: ast.Compare, scope: dict[str, Any]) -> Any:
        left, right = self.value(node.left, scope), self.value(node.comparators[0], scope)
        if (
            left is UNKNOWN
            and self.entry(right) is not UNKNOWN
            and isinstance(node.ops[0], (ast.In, ast.NotIn))
        ):
            return isinstance(node.ops[0], ast.In)
        if left is UNKNOWN or right is UNKNOWN:
            return UNKNOWN
        if left == Dotted("__name__"):
            return right == "__main__"
        return try_(lambda: COMPARE[type(node.ops[0])](left, right))

    def _boolop(self, node: ast.BoolOp, scope: dict[str, Any]) -> Any:
        value: Any = UNKNOWN
        for part in node.values:
            value = self.value(part, scope)
            if value is UNKNOWN or bool(value) == isinstance(node.op, ast.Or):
                break
        return value

    def _ifexp(self, node: ast.IfExp, scope: dict[str, Any]) -> Any:
        return self.value(
            node.body if self.value(node.test, scope) not in (UNKNOWN, False) else node.orelse,
            scope,
        )

    def _tuple(self, node: ast.Tuple, scope: dict[str, Any]) -> Any:
        return tuple(self._list(node, scope))

    def _list(self, node: ast.List | ast.Tuple | ast.Set, scope: dict[str, Any]) -> list[Any]:
        out: list[Any] = []
        for item in node.elts:
            if isinstance(item, ast.Starred):
                out.extend(self.items(self.value(item.value, scope)))
            else:
                out.append(self.value(item, scope))
        return out

    def _dict(self, node: ast.Dict, scope: dict[str, Any]) -> Any:
        pairs = [
            (self.value(k, scope), self.value(v, scope))
            for k, v in zip(node.keys, node.values, strict=True)
            if k
        ]
        return try_(lambda: dict(pairs))

    def _joinedstr(self, node: ast.JoinedStr, scope: dict[str, Any]) -> Any:
        parts = [
            self.value(p.value if isinstance(p, ast.FormattedValue) else p, scope)
            for p in node.values
        ]
        return (
            "".join(map(str, parts)) if all(isinstance(p, (str, int)) for p in parts) else UNKNOWN
        )

    def _subscript(self, node: ast.Subscript, scope: dict[str, Any]) -> Any:
        holder, key = self.value(node.value, scope), self.value(node.slice, scope)
        if (
            isinstance(holder, (str, bytes, bytearray, list, tuple, dict, range))
            and key is not UNKNOWN
        ):
            return try_(lambda: holder[key])
        return self.entry(holder) if key is UNKNOWN else UNKNOWN

    def _slice(self, node: ast.Slice, scope: dict[str, Any]) -> Any:
        parts = [
            None if p is None else self.value(p, scope) for p in (node.lower, node.upper, node.step)
        ]
        return slice(*parts) if all(p is None or isinstance(p, int) for p in parts) else UNKNOWN

    def _lambda(self, node: ast.Lambda, scope: dict[str, Any]) -> Any:
        return Function(node, scope)

    def _namedexpr(self, node: ast.NamedExpr, scope: dict[str, Any]) -> Any:
        value = self.value(node.value, scope)
        self.assign(node.target, value, scope)
        return value

    def _listcomp(
        self, node: ast.ListComp | ast.GeneratorExp | ast.SetComp, scope: dict[str, Any]
    ) -> list[Any]:
        out: list[Any] = []
        self._generate(
            node.generators, dict(scope), lambda inner: out.append(self.value(node.elt, inner))
        )
        return out

    _generatorexp = _listcomp
    _setcomp = _listcomp

    def _generate(
        self, parts: list[ast.comprehension], scope: dict[str, Any], emit: Callable[[Any], None]
    ) -> None:
        if not parts:
            emit(scope)
            return
        for item in self.items(self.value(parts[0].iter, scope)):
            self.assign(parts[0].target, item, scope)
            if all(self.value(test, scope) not in (UNKNOWN, False, 0) for test in parts[0].ifs):
                self._generate(parts[1:], scope, emit)

    def _call(self, node: ast.Call, scope: dict[str, Any]) -> Any:
        from niblick.audit.unpack.calls import call

        return call(self, node, scope)

    def invoke(self, function: Function, args: list[Any], named: dict[str, Any]) -> Any:
        """The result of a loader function on values."""
        node = function.node
        names = [a.arg for a in (*node.args.posonlyargs, *node.args.args)]
        scope = dict(function.scope)
        for name, default in zip(reversed(names), reversed(node.args.defaults), strict=False):
            scope[name] = self.value(default, function.scope)
        scope.update(zip(names, args, strict=False))
        scope.update(named)
        if isinstance(node, ast.Lambda):
            return self.value(node.body, scope)
        try:
            self.run(node.body, scope)
        except _Return as result:
            return result.value
        return None


def _load(target: ast.expr) -> ast.expr:
    """An assignment target as the expression that reads it."""
    if isinstance(target, ast.Name):
        return ast.copy_location(ast.Name(id=target.id, ctx=ast.Load()), target)
    return target


def try_(action: Callable[[], Any]) -> Any:
    """The action's value, or `UNKNOWN` when the data does not fit it."""
    try:
        return action()
    except (
        TypeError,
        ValueError,
        KeyError,
        IndexError,
        AttributeError,
        ZeroDivisionError,
        OverflowError,
        MemoryError,
    ):
        return UNKNOWN


def _import(node: ast.Import | ast.ImportFrom, scope: dict[str, Any]) -> None:
    for alias in node.names:
        if isinstance(node, ast.Import):
            name = alias.name if alias.asname else alias.name.split(".")[0]
            scope[alias.asname or name] = Dotted(name)
        else:
            scope[alias.asname or alias.name] = Dotted(f"{node.module}.{alias.name}")


__all__ = ["UNKNOWN", "Dotted", "Evaluator", "Executed", "Function", "Handle", "Loader", "Space"]
