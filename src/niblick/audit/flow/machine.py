"""The engine's statements: runs a program over shadow values and writes down what it saw.

Nothing of the program is executed by Python: each statement is interpreted over `Box`es and plain
data. A branch whose condition is unknown runs both ways; a loop whose body does something of
interest runs twice and once more for its last turn; steps are bounded.
"""

from __future__ import annotations

import ast
from typing import Any

from niblick.audit.flow.boxes import Box, Leaf, collect, merge, replace_content, snapshot
from niblick.audit.flow.figures import LOST
from niblick.audit.flow.looping import Looping
from niblick.audit.flow.methods import is_own
from niblick.audit.flow.objects import Class, Dotted, Function, Instance
from niblick.audit.flow.signals import (
    AbortSignal,
    BreakSignal,
    BudgetSignal,
    ContinueSignal,
    ReturnSignal,
)
from niblick.audit.flow.trials import as_kept

_MISREAD = (
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    ArithmeticError,
    OSError,
    AssertionError,
)
"""What plain operations on values of an unexpected kind raise: that statement is passed over."""


class Machine(Looping):
    """Interprets statements; expressions and calls are in the base classes."""

    def run_module(self, tree: ast.Module, name: str, file: str, scope: dict[str, Any]) -> None:
        """Runs a module's body over `scope`, its global names."""
        scope.update({"__name__": name, "__file__": file, "__builtins__": Dotted("builtins")})
        self.scopes.append((scope,))
        self.outer_names.append({})
        try:
            for statement in tree.body:
                try:
                    self.statement(statement)
                except (ReturnSignal, BreakSignal, ContinueSignal, AbortSignal):
                    self.note(f"line {statement.lineno}: stopped early")
        finally:
            self.scopes.pop()
            self.outer_names.pop()

    def block(self, body: list[ast.stmt]) -> None:
        for statement in body:
            self.statement(statement)

    def statement(self, node: ast.stmt) -> None:
        self.tick(node)
        handler = getattr(self, f"do_{type(node).__name__.lower()}", None)
        if handler is None:
            return
        try:
            handler(node)
        except _MISREAD as error:
            self.note(f"line {self.line}: not followed ({type(error).__name__})")

    def do_expr(self, node: ast.Expr) -> None:
        if not isinstance(node.value, ast.Constant):
            self.value(node.value)

    def do_assign(self, node: ast.Assign) -> None:
        value = self.value(node.value)
        for target in node.targets:
            self.assign(target, value)

    def do_annassign(self, node: ast.AnnAssign) -> None:
        scope = self.scopes[-1][0]
        if isinstance(node.target, ast.Name) and "__fields__" in scope:
            scope["__fields__"].append(node.target.id)
            self.note_type(scope, node.target.id, node.annotation)
        if node.value is not None:
            self.assign(node.target, self.value(node.value))

    def do_augassign(self, node: ast.AugAssign) -> None:
        left = self.value(_as_load(node.target))
        right = self.value(node.value)
        if self.adding:
            self.adding[-1].setdefault(id(node), []).append(right)
        self.augment(node, left, right)

    def augment(self, node: ast.AugAssign, left: Any, right: Any) -> None:
        """What `left` becomes when `right` is added to it, or taken off."""
        if isinstance(left, Instance):
            self.assign(node.target, self.binary(node.op, left, right, node, in_place=True))
            return
        if (
            isinstance(left, list)
            and isinstance(right, (list, tuple))
            and isinstance(node.op, ast.Add)
        ):
            left.extend(right)
            return
        self.table_write(node.target, left)
        if isinstance(right, Box) and isinstance(node.op, ast.Add):
            right = self.added_up(right, node)
        result = self.binary(node.op, left, right, node)
        if isinstance(right, Box) and right.scores:
            self.adders.add(id(node))
        elif isinstance(left, Box) and isinstance(result, Box):
            seen_before = self.widened or id(node) in self.adders
            result = self.kept_content(left, result) if seen_before else result
        if isinstance(left, Box) and left.live:
            self.update_param(left, collect(right), node)
            return
        part = isinstance(node.target, ast.Subscript)
        plain = isinstance(left, Box) and "scalar" not in left.marks and not part
        if plain and isinstance(left, Box) and isinstance(result, Box):
            replace_content(left, result)
            self.shared(left)
            return
        self.assign(node.target, result)

    def kept_content(self, left: Box, result: Box) -> Box:
        """A sum of scores keeps its content where the same statement, or the last turn of a loop
        that stands for many, adds what is not known.
        """
        if not left.scores or left.val is None or result.val is not None:
            return result
        lost = {m for m in result.marks if m.startswith(LOST)}
        return snapshot(result, val=left.val, marks=result.marks - (lost - left.marks))

    def table_write(self, target: ast.expr, old: Any) -> None:
        """Marks the table behind `table[key] += ...` as one that counts."""
        if isinstance(target, ast.Subscript):
            holder = self.value(target.value)
            if isinstance(holder, Box) and not holder.roots:
                holder.table |= 1

    def assign(self, target: ast.expr, value: Any) -> None:
        value = as_kept(value, self.kept_for, self.told_by, self.line)
        if isinstance(target, ast.Name):
            self.store(target.id, value)
        elif isinstance(target, (ast.Tuple, ast.List)):
            self.unpack_into(target.elts, value)
        elif isinstance(target, ast.Starred):
            self.assign(target.value, value)
        elif isinstance(target, ast.Attribute):
            self.set_attribute(self.value(target.value), target.attr, value, target)
        elif isinstance(target, ast.Subscript):
            self.set_item(self.value(target.value), self.value(target.slice), value, target)

    def store(self, name: str, value: Any) -> None:
        scopes = self.scopes[-1]
        outer = self.outer_names[-1] if self.outer_names else {}
        if name in outer:
            for scope in scopes[1:] if outer[name] == "nonlocal" else scopes[-1:]:
                if name in scope or outer[name] == "global":
                    scope[name] = value
                    return
        scopes[0][name] = self.seed_by_name(name, value)

    def unpack_into(self, targets: list[ast.expr], value: Any) -> None:
        items = self.iterate(value, len(targets))
        stars = [i for i, t in enumerate(targets) if isinstance(t, ast.Starred)]
        if stars and len(items) >= len(targets) - 1:
            at, extra = stars[0], len(items) - len(targets) + 1
            items = [*items[:at], list(items[at : at + extra]), *items[at + extra :]]
        for i, target in enumerate(targets):
            self.assign(target, items[i] if i < len(items) else merge(collect(value)))

    def do_functiondef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        marks: set[str] = set()
        wrappers: list[Any] = []
        for decorator in node.decorator_list:
            value = self.value(decorator.func if isinstance(decorator, ast.Call) else decorator)
            if isinstance(value, Function) and isinstance(decorator, ast.Call):
                value = self.value(decorator)  # a function that makes the wrapper
            name = value.name.rsplit(".", 1)[-1] if isinstance(value, (Dotted, Function)) else ""
            if name in {"no_grad", "inference_mode"}:
                marks.add("no_grad")
            elif name in frozenset(
                ["property", "cached_property", "staticmethod", "classmethod", "contextmanager"]
            ):
                marks.add(name)
            elif isinstance(value, Dotted) and value.name == "functools.cache":
                marks.add("cached")
            elif name == "jit" and isinstance(value, Dotted) and "triton" in value.name:
                marks.add("kernel")
            elif isinstance(value, Function):
                wrappers.append(value)
        function = Function(node, self.scopes[-1], node.name, frozenset(marks), self.defining)
        for wrapper in reversed(wrappers):
            result = self.call_function(wrapper, [function], {}, node)
            function = result if isinstance(result, Function) else function
        self.store(node.name, function)

    do_asyncfunctiondef = do_functiondef

    def do_classdef(self, node: ast.ClassDef) -> None:
        bases = tuple(self.value(b) for b in node.bases)
        body: dict[str, Any] = {"__fields__": []}
        kind = self.kind_of(node, bases)
        cls = Class(node.name, bases, body, kind, node)
        self.scopes.append((body, *self.scopes[-1]))
        previous, self.defining = self.defining, cls
        try:
            self.block(node.body)
        except (ReturnSignal, BreakSignal, ContinueSignal, AbortSignal):
            self.note(f"class {node.name}: body stopped early")
        finally:
            self.scopes.pop()
            self.defining = previous
        self.fields |= {
            n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute) and is_own(n)
        }
        for name, value in body.items():
            if isinstance(value, Function):
                self.methods.setdefault(name, []).append(value)
        self.store(node.name, cls)

    def do_return(self, node: ast.Return) -> None:
        raise ReturnSignal(None if node.value is None else self.value(node.value))

    def do_break(self, node: ast.Break) -> None:
        raise BreakSignal

    def do_continue(self, node: ast.Continue) -> None:
        raise ContinueSignal

    def do_assert(self, node: ast.Assert) -> None:
        self.value(node.test)

    def do_raise(self, node: ast.Raise) -> None:
        if node.exc is not None:
            self.value(node.exc)
        if not self.uncertain:
            self.raised = True
            self.note(f"line {node.lineno}: the program raises here")
            if self.stubborn:
                return
        raise AbortSignal(sure=not self.ways)

    def do_global(self, node: ast.Global) -> None:
        if self.outer_names:
            self.outer_names[-1].update(dict.fromkeys(node.names, "global"))

    def do_nonlocal(self, node: ast.Nonlocal) -> None:
        if self.outer_names:
            self.outer_names[-1].update(dict.fromkeys(node.names, "nonlocal"))

    def do_delete(self, node: ast.Delete) -> None:
        for target in node.targets:
            if isinstance(target, ast.Name):
                self.scopes[-1][0].pop(target.id, None)
            elif isinstance(target, ast.Subscript):
                self.value(target.slice)

    def do_with(self, node: ast.With | ast.AsyncWith) -> None:
        entered = 0
        managers: list[Instance] = []
        for item in node.items:
            value = self.value(item.context_expr)
            if isinstance(value, Instance):
                managers.append(value)
                value = self.own_method(value, ("__enter__", "__aenter__"), [], node, value)
            if isinstance(value, Dotted) and value.name.rsplit(".", 1)[-1] in {
                "no_grad",
                "inference_mode",
            }:
                entered += 1
            elif isinstance(value, Dotted) and value.name.endswith("enable_grad"):
                entered -= self.no_grad
            if item.optional_vars is not None:
                self.assign(item.optional_vars, value)
        self.no_grad += entered
        try:
            self.block(node.body)
        finally:
            self.no_grad -= entered
            for manager in reversed(managers):
                self.own_method(manager, ("__exit__", "__aexit__"), [None] * 3, node, None)

    do_asyncwith = do_with


def _as_load(target: ast.expr) -> ast.expr:
    return target


__all__ = ["BudgetSignal", "Leaf", "Machine"]
