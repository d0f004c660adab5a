"""Modules that a script carries in memory: sources held in a dictionary and handed to an importer
or to `exec`.

A function that would run text looked up by a name it does not know (an importer's `exec_module`, a
loader's `get_source`, a helper) is evaluated once for every entry of the dictionary; nothing is
executed.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from niblick.audit.unpack.codecs import PackError
from niblick.audit.unpack.evaluate import UNKNOWN, Evaluator, Function

_MOST_ENTRIES = 1000
_RUNS = frozenset({"exec", "compile"})
_GIVES_SOURCE = frozenset({"get_source", "get_data", "get_code", "source_to_code"})


@dataclass
class Bundle:
    """Module path -> source text, the decoders they were packed with, and the calls (text, line)
    that would run them.
    """

    files: dict[str, str] = field(default_factory=dict)
    layers: list[str] = field(default_factory=list)
    calls: set[tuple[str, int]] = field(default_factory=set)


def bundled(tree: ast.Module, run: Evaluator, scope: dict[str, Any]) -> Bundle:
    """The modules that importers in `tree` would run from dictionaries in `scope`."""
    found = Bundle()
    functions = [f for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) and _runs_text(f)]
    for holder in _holders(scope) if functions else ():
        for function in functions:
            one = _through(function, holder, run, scope)
            if len(one.files) > len(holder) // 2:
                found.files.update(
                    {path_of(name, holder): text for name, text in one.files.items()}
                )
                found.layers.extend(one.layers)
                found.calls |= one.calls
                break
    return found


def path_of(name: str, names: Any) -> str:
    """The file a module name stands for: `a.b` is a/b.py, or a/b/__init__.py where `a.b.c` is among
    `names`.
    """
    if name.endswith(".py"):
        return name
    package = any(str(other).startswith(name + ".") for other in names)
    return name.replace(".", "/") + ("/__init__.py" if package else ".py")


def _runs_text(function: ast.FunctionDef) -> bool:
    return function.name in _GIVES_SOURCE or any(
        isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _RUNS
        for node in ast.walk(function)
    )


def _holders(scope: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The scope's dictionaries that could map module names to sources, largest first."""
    found = [
        value
        for value in scope.values()
        if isinstance(value, dict)
        and 0 < len(value) <= _MOST_ENTRIES
        and all(isinstance(key, str) and _names_module(key) for key in value)
    ]
    yield from sorted(found, key=len, reverse=True)


def _names_module(key: str) -> bool:
    return all(part.isidentifier() for part in key.removesuffix(".py").replace("/", ".").split("."))


def _through(
    function: ast.FunctionDef, holder: dict[str, Any], run: Evaluator, scope: dict[str, Any]
) -> Bundle:
    """What `function` would run for each entry of `holder`, by its name."""
    found = Bundle()
    for name in holder:
        before = len(run.loader.executed)
        run.assumed = (holder, name)
        try:
            result = run.invoke(Function(function, {**scope, **_unknown(function)}), [], {})
        except PackError:
            result = None
        finally:
            run.assumed = None
        executed = run.loader.executed[before:]
        del run.loader.executed[before:]
        text = executed[0].text if executed else _source(function, result)
        if text is not None and _is_program(text):
            found.files[name] = text
            found.calls |= {(item.call, item.line) for item in executed}
            found.layers = (
                found.layers or [*executed[0].layers[:-1], "modules"] if executed else ["modules"]
            )
    return found


def _unknown(function: ast.FunctionDef) -> dict[str, Any]:
    spec = function.args
    return {a.arg: UNKNOWN for a in (*spec.posonlyargs, *spec.args, *spec.kwonlyargs)}


def _source(function: ast.FunctionDef, result: Any) -> str | None:
    if function.name not in _GIVES_SOURCE:
        return None
    if isinstance(result, (bytes, bytearray)):
        return bytes(result).decode("utf-8", "replace")
    return result if isinstance(result, str) else None


def _is_program(text: str) -> bool:
    try:
        ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True
