"""Which functions a run of the script comes to: calls followed from the top level, conditions
evaluated.

A condition is decided where it can be evaluated with the imported module, its settings and the
assignments above it; both sides of any other count as possible. Nothing but such expressions is
run.
"""

from __future__ import annotations

import ast
from types import ModuleType
from typing import Any

from niblick.audit.inside.modelling import Scope, settings_of
from niblick.audit.unpack import parse

_MOST_STEPS = 20_000


def reached(text: str, module: ModuleType) -> dict[str, str]:
    """Function name to "yes" (called under conditions known to hold) or "maybe"; absent: never
    called.
    """
    try:
        tree = parse(text)
    except (SyntaxError, ValueError, RecursionError):
        return {}
    walk = _Walk(tree, module)
    walk.block(
        [node for node in tree.body if not isinstance(node, ast.FunctionDef | ast.ClassDef)],
        None,
        sure=True,
    )
    return walk.found


class _Walk:
    def __init__(self, tree: ast.Module, module: ModuleType) -> None:
        self.found: dict[str, str] = {}
        self._module, self._settings = module, settings_of(module)
        self._functions = {
            node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)
        }
        self._steps = 0

    def block(self, body: list[ast.stmt], function: ast.FunctionDef | None, *, sure: bool) -> None:
        """Walks statements in order; one that surely leaves the function ends the block."""
        for node in body:
            self._steps += 1
            if self._steps > _MOST_STEPS:
                return
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                continue
            if isinstance(node, ast.If):
                self._branch(node, function, sure=sure)
                continue
            inner = [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]
            for child in ast.iter_child_nodes(node):
                if not isinstance(child, ast.stmt):
                    self._calls(child, sure=sure)
            for handler in getattr(node, "handlers", ()):
                self.block(handler.body, function, sure=False)
            self.block(inner, function, sure=sure)
            if isinstance(node, ast.Return | ast.Raise):
                return

    def _branch(self, node: ast.If, function: ast.FunctionDef | None, *, sure: bool) -> None:
        self._calls(node.test, sure=sure)
        holds = self._decide(node.test, function)
        if holds is not False:
            self.block(node.body, function, sure=sure and holds is True)
        if holds is not True:
            self.block(node.orelse, function, sure=sure and holds is False)

    def _decide(self, test: ast.expr, function: ast.FunctionDef | None) -> bool | None:
        """Whether a condition holds; None where it cannot be told. The main guard holds: the script
        is run.
        """
        if ast.unparse(test).replace('"', "'") == "__name__ == '__main__'":
            return True
        if isinstance(test, ast.BoolOp):
            parts = [self._decide(part, function) for part in test.values]
            decisive = isinstance(test.op, ast.Or)
            if decisive in parts:
                return decisive
            return None if None in parts else not decisive
        try:
            scope = Scope(self._module, self._settings, function, test.lineno)
            return bool(scope.value(test))
        except BaseException:  # noqa: BLE001 - the script's own expression: anything may come of it
            return None

    def _calls(self, node: ast.AST, *, sure: bool) -> None:
        for child in ast.walk(node):
            name = child.id if isinstance(child, ast.Name) else None
            if name not in self._functions or self.found.get(name) == "yes":
                continue
            if self.found.get(name) == "maybe" and not sure:
                continue
            self.found[name] = "yes" if sure else "maybe"
            target: Any = self._functions[name]
            self.block(target.body, target, sure=sure)
