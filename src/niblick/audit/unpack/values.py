"""The values of loader code as the evaluator knows them, and the state of one evaluation."""

from __future__ import annotations

import ast
import lzma
from dataclasses import dataclass, field
from typing import Any


class _Unknown:
    """A value the evaluator does not follow; absorbs every operation."""

    def __repr__(self) -> str:
        return "UNKNOWN"


UNKNOWN = _Unknown()


@dataclass(frozen=True)
class Dotted:
    """A module, class or function known only by its dotted name."""

    name: str


@dataclass
class Function:
    """A function of the loader: parameters, body and the scope it closes over."""

    node: ast.FunctionDef | ast.Lambda
    scope: dict[str, Any]


@dataclass
class Handle:
    """An open virtual file."""

    path: str
    mode: str


@dataclass
class Space:
    """A module object that the loader makes, its namespace, or what loads it from `path`."""

    name: str
    path: str = ""


@dataclass
class Executed:
    """One piece of program text that the loader would run: decoders used, the line and call that
    run it, its module if named.
    """

    text: str
    layers: tuple[str, ...]
    line: int
    module: str | None = None
    call: str = ""


@dataclass
class Loader:
    """State of one evaluation: virtual files, what was executed, the decoders used so far."""

    files: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    executed: list[Executed] = field(default_factory=list)
    layers: list[str] = field(default_factory=list)
    resolved: set[tuple[str, int]] = field(default_factory=set)
    steps: int = 0


def constant(value: Any) -> Any:
    """The number behind a dotted constant such as `lzma.FORMAT_RAW`, inside lists and dictionaries
    too.
    """
    if isinstance(value, Dotted) and value.name.startswith("lzma.") and value.name[5:].isupper():
        return getattr(lzma, value.name[5:], UNKNOWN)
    if isinstance(value, dict):
        return {k: constant(v) for k, v in value.items()}
    return [constant(v) for v in value] if isinstance(value, list) else value
