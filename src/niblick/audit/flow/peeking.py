"""Loops over tokens that write, for each token, something they would not write were it another
token.

The Python side of `native`: in `for i, t in enumerate(tokens)` (or over a range, with `t =
tokens[i]`), an entry `out[i] = ...` that does not hold `t` but stands under a condition looked up
from `t` tells something about it.
"""

from __future__ import annotations

import ast

from niblick.audit.reads import name_of

_CASTS = frozenset({"int", "item", "uint16", "int32", "int64", "uint32"})


def peeks(function: ast.AST) -> bool:
    """Whether some loop of a function writes entries that are gated by the very token they are
    for.
    """
    if not isinstance(function, ast.FunctionDef):
        return False
    return any(isinstance(node, ast.For) and _Turn(node).gated for node in ast.walk(function))


class _Turn:
    """One turn of a loop over tokens."""

    def __init__(self, loop: ast.For) -> None:
        self.index = ""
        self.current: set[str] = set()
        self.telling: set[str] = set()
        self.gated = False
        call = loop.iter
        name = (
            call.func.id if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) else ""
        )
        if (
            name == "enumerate"
            and isinstance(loop.target, ast.Tuple)
            and len(loop.target.elts) == 2
        ):
            index, token = loop.target.elts
            if isinstance(index, ast.Name) and isinstance(token, ast.Name):
                self.index, self.current = index.id, {token.id}
        elif name in {"range", "prange", "trange"} and isinstance(loop.target, ast.Name):
            self.index = loop.target.id
        if self.index:
            self.follow(loop.body, False)

    def follow(self, body: list[ast.stmt], gate: bool) -> bool:
        """Follows statements in order; whether what comes after them is gated too."""
        for node in body:
            if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None:
                for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                    self.assign(target, node.value, gate)
            elif isinstance(node, ast.If):
                inner = gate or self.tells(node.test)
                self.follow(node.body, inner)
                self.follow(node.orelse, inner)
                gate = gate or (inner and (_leaves(node.body) or _leaves(node.orelse)))
            elif isinstance(node, (ast.For, ast.While, ast.With, ast.Try)):
                gate = self.follow(node.body, gate) or gate
        return gate

    def assign(self, target: ast.expr, value: ast.expr, gate: bool) -> None:
        if isinstance(target, ast.Subscript):
            plain = isinstance(target.slice, ast.Name) and target.slice.id == self.index
            computed = any(isinstance(n, (ast.Subscript, ast.Call)) for n in ast.walk(value))
            self.gated = self.gated or (gate and plain and computed and not self.holds(value))
        elif isinstance(target, ast.Name):
            told, held = self.tells(value) or gate, self.holds(value)
            self.telling.discard(target.id)
            self.current.discard(target.id)
            if told:
                self.telling.add(target.id)
            if held:
                self.current.add(target.id)

    def copies(self, value: ast.expr) -> bool:
        """Whether an expression is the current token or made from it: its name, a cast, an array's
        entry at the index.
        """
        if isinstance(value, ast.Call) and len(value.args) == 1:
            return name_of(value.func) in _CASTS and self.copies(value.args[0])
        if isinstance(value, ast.Subscript):
            return isinstance(value.slice, ast.Name) and value.slice.id == self.index
        return isinstance(value, ast.Name) and value.id in self.current

    def holds(self, value: ast.expr) -> bool:
        return any(isinstance(node, ast.expr) and self.copies(node) for node in ast.walk(value))

    def tells(self, value: ast.expr) -> bool:
        """Whether an expression depends on a property looked up from the current token."""
        for node in ast.walk(value):
            if isinstance(node, ast.Name) and node.id in self.telling:
                return True
            if isinstance(node, ast.Subscript) and self.copies(node.slice):
                return True
        return False


def _leaves(body: list[ast.stmt]) -> bool:
    return any(isinstance(node, (ast.Continue, ast.Break, ast.Return)) for node in body)
