"""What a script reads from the environment, and what plain text is worth to it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import Any

from niblick.audit.operators import COMPARE

OFF = frozenset({"", "0", "0.0", "false", "False", "none", "None", "no", "off"})
ON = frozenset({"true", "True", "yes", "on"})
CASTS = frozenset({"int", "float", "bool", "str"})
UNDECIDED: Any = object()
"""What no setting and no default decides."""


def compared(op: ast.cmpop, left: Any, right: Any) -> Any:
    """What a comparison gives; `UNDECIDED` where values cannot be compared."""
    try:
        return COMPARE[type(op)](left, right)
    except TypeError:
        return UNDECIDED


def holds(test: ast.Compare, left: Any, right: Any) -> bool:
    """Whether a comparison surely holds between two values."""
    return compared(test.ops[0], left, right) is True


def is_number(text: str) -> bool:
    """Whether a setting is a number to the script."""
    return isinstance(plain(text), (int, float))


def plain(text: str) -> Any:
    """A setting as the number or truth that a script makes of it, else as text."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return False if text in OFF else True if text in ON else text


def direct_reads(node: ast.expr) -> Iterator[tuple[str, str | None]]:
    """A read of the environment that an expression is, in conversions or not."""
    inner = node
    while isinstance(inner, ast.Call) and name_of(inner.func) in CASTS and len(inner.args) == 1:
        inner = inner.args[0]
    if isinstance(inner, ast.Call) and name_of(inner.func) in {"get", "getenv"}:
        yield from environment_reads(inner)


def of_self(node: ast.AST) -> str:
    """The name of an attribute of `self`; empty for anything else."""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return node.attr if node.value.id == "self" else ""
    return ""


def name_of(node: ast.AST | None) -> str:
    """The last name of a name or an attribute; empty for anything else."""
    return getattr(node, "attr", "") or getattr(node, "id", "")


def names_in(node: ast.AST) -> set[str]:
    """The last names of all names and attributes inside a node."""
    return {name_of(part) for part in ast.walk(node)} - {""}


def environment_reads(node: ast.expr) -> Iterator[tuple[str, str | None]]:
    """(variable, default) of each environment read inside an expression, direct or through a
    helper.
    """
    for call in ast.walk(node):
        if isinstance(call, ast.Call) and call.args and isinstance(call.args[0], ast.Constant):
            key = call.args[0].value
            if isinstance(key, str) and re.fullmatch(r"[A-Z][A-Z0-9_]+", key):
                default = call.args[1] if len(call.args) > 1 else None
                value = default.value if isinstance(default, ast.Constant) else None
                value = int(value) if isinstance(value, bool) else value
                yield key, None if value is None else str(value)
