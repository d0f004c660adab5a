"""`niblick generate` as it is mostly written, read without typer and pydantic, whose imports take
as long as the model does.

Only what typer reads to the same values is taken; all else (help, mistakes, values that begin with
a dash) is left to typer.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any


def _path(text: str) -> Any:
    from pathlib import Path

    return Path(text)


_TEXT, _WHOLE, _REAL = r"(?s:.*)", r"[0-9]{1,9}", r"[0-9]{1,9}(\.[0-9]{1,17})?"
# What follows an option: how it is written, and what makes its value.
_VALUES: dict[str, tuple[str, Callable[[str], Any]]] = {
    "--prompt": (_TEXT, str),
    "--prompt-file": (r"(?s:.+)", _path),
    "--max-tokens": (_WHOLE, int),
    "--temperature": (_REAL, float),
    "--top-k": (_WHOLE, int),
    "--top-p": (_REAL, float),
    "--seed": (_WHOLE, int),
    "--stop": (_TEXT, str),
    "--tokenizer": (_TEXT, str),
    "--threads": (_WHOLE, int),
    "--device": (_TEXT, str),
}
_SWITCHES = {
    "--interactive": "interactive",
    "--across-documents": "across_documents",
    "--json": "as_json",
}


def read_plainly(arguments: list[str]) -> dict[str, Any] | None:
    """The arguments of `niblick.cli.generation.generate`; None for typer to read."""
    if arguments[:1] != ["generate"]:
        return None
    found: dict[str, Any] = {}
    read: Any
    waiting = iter(arguments[1:])
    for word in waiting:
        option, equals, value = word.partition("=")
        if word in _SWITCHES:
            name, read = _SWITCHES[word], True
        elif not word.startswith("-"):
            name, read = "model", word
        elif option in _VALUES:
            pattern, make = _VALUES[option]
            value = value if equals else next(waiting, "-")
            if value.startswith("-") or not re.fullmatch(pattern, value):
                return None
            name, read = option[2:].replace("-", "_"), make(value)
        else:
            return None
        if name == "stop":
            read = [*found.pop("stop", []), read]
        if name in found:
            return None
        found[name] = read
    return found if "model" in found else None
