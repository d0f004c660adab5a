"""Whether the documented run can reach a function that the engine did not follow itself.

A function counts as reachable when it was interpreted, or when some call of it stands in a
reachable function under no switch that the documented run leaves off.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from copy import deepcopy
from functools import cached_property

from niblick.audit.conditions import Guard
from niblick.audit.reads import UNDECIDED, name_of, of_self
from niblick.audit.rules.case import Case

_MOST = 64  # constructions of one class that are looked at


class Reach:
    """Reachability by name over one script; `model` is the class whose methods are read, where one
    is: in their conditions `self.x` stands for what every object of it was made with.
    """

    def __init__(self, case: Case, model: ast.ClassDef | None = None) -> None:
        self.case, self.model = case, model
        self.scan = case.scan
        self.known: dict[str, bool] = {}

    def possible(self, name: str, depth: int = 0) -> bool:
        """Whether a function of this name can run in the documented run."""
        if name in self.case.trace.reached or name == "<module>":
            return True
        if name not in self.known:
            self.known[name] = False
            self.known[name] = depth < 20 and any(
                not any(self.closed(guard) for guard in guards) and self.possible(outer, depth + 1)
                for guards, outer in self.scan.calls.get(name, [])
            )
        return self.known[name]

    def closed(self, guard: Guard) -> bool:
        """Whether the settings of the documented run decide a condition against running."""
        if self._against(guard.test, guard.wanted):
            return True
        if self.model is None or not any(of_self(part) for part in ast.walk(guard.test)):
            return False
        tests = [_Filled(given).visit(deepcopy(guard.test)) for given in self.made]
        return bool(tests) and all(self._against(test, guard.wanted) for test in tests)

    def _against(self, test: ast.expr, wanted: bool) -> bool:
        value = self.scan.decided(test, self.case.environment)
        return value is not UNDECIDED and bool(value) != wanted

    @cached_property
    def made(self) -> list[dict[str, ast.expr]]:
        """For each construction of the class, what it gives to the attributes that its constructor,
        and nothing else, sets to an argument; nothing where not all constructions are plain.
        """
        model, tree = self.model, self.case.program.tree
        body = model.body if model is not None else []
        init = next((m for m in body if getattr(m, "name", "") == "__init__"), None)
        if model is None or not isinstance(init, ast.FunctionDef):
            return []
        sites = [c for _, c in self.case.program.calls() if name_of(c.func) == model.name]
        bases = (b for n in ast.walk(tree) if isinstance(n, ast.ClassDef) for b in n.bases)
        derived = any(name_of(base) == model.name for base in bases)
        by_name = any(name_of(c.func) == "setattr" for _, c in self.case.program.calls())
        if len(sites) > _MOST or derived or by_name or _named(tree, model.name) != len(sites):
            return []
        kept = _kept_arguments(tree, model, init)
        return [
            {attribute: found for attribute, name in kept.items() if (found := given.get(name))}
            for given in (_given(init, site) for site in sites)
        ]


def _kept_arguments(tree: ast.Module, model: ast.ClassDef, init: ast.FunctionDef) -> dict[str, str]:
    """Attributes that hold an argument of the constructor as it came, and are set nowhere else."""
    arguments = {a.arg for a in (*init.args.args, *init.args.kwonlyargs)}
    stored = Counter(map(of_self, _stored(model)))
    elsewhere = {part.attr for part in _stored(tree) if not of_self(part)}
    changed = {
        part.id
        for part in ast.walk(init)
        if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)
    }
    return {
        of_self(node.targets[0]): node.value.id
        for node in init.body
        if isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Name)
        and node.value.id in arguments - changed
        and stored[of_self(node.targets[0])] == 1
        and of_self(node.targets[0]) not in elsewhere
    }


def _named(tree: ast.Module, name: str) -> int:
    """How often a class is named, other than for its kind or in annotations."""
    passed: set[int] = set()
    for node in ast.walk(tree):
        apart = [getattr(node, "annotation", None), getattr(node, "returns", None)]
        if isinstance(node, ast.Call) and name_of(node.func) in {"isinstance", "issubclass"}:
            apart += node.args[1:]
        passed |= {id(part) for each in apart if each is not None for part in ast.walk(each)}
    return sum(
        isinstance(node, (ast.Name, ast.Attribute))
        and isinstance(node.ctx, ast.Load)
        and name_of(node) == name
        and id(node) not in passed
        for node in ast.walk(tree)
    )


def _stored(node: ast.AST) -> Iterator[ast.Attribute]:
    """The attributes that a program sets by name."""
    for part in ast.walk(node):
        if isinstance(part, ast.Attribute) and isinstance(part.ctx, ast.Store):
            yield part


def _given(init: ast.FunctionDef, call: ast.Call) -> dict[str, ast.expr]:
    """What a construction gives each argument, defaults included."""
    places = [a.arg for a in init.args.args[1:]]
    defaults = zip(reversed(places), reversed(init.args.defaults), strict=False)
    only = zip(init.args.kwonlyargs, init.args.kw_defaults, strict=True)
    found = {**dict(defaults), **{a.arg: value for a, value in only if value is not None}}
    if any(isinstance(a, ast.Starred) for a in call.args) or any(not k.arg for k in call.keywords):
        return {}
    found |= dict(zip(places, call.args, strict=False))
    return found | {k.arg: k.value for k in call.keywords if k.arg}


class _Filled(ast.NodeTransformer):
    """Attributes of `self` replaced by what an object was made with."""

    def __init__(self, given: dict[str, ast.expr]) -> None:
        self.given = given

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        """An attribute of `self`, where its value is known."""
        return self.given.get(of_self(node), node)
