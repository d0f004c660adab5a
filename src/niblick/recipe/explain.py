"""What is wrong with a recipe, in one line: the right key, what was given, what was meant."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher, get_close_matches
from typing import Any, get_args

from pydantic import BaseModel

from niblick.limits import cut, quoted
from niblick.recipe.schema import Recipe

_MOST = 3  # clauses of a line


def recipe_keys() -> list[str]:
    """Every key that a recipe can have, sections left out; N stands for the number of a segment."""
    return list(_keys(Recipe))


def explain(errors: Sequence[Any]) -> str:
    """A clause for each key that errors of pydantic blame, the first few of them.

    The branches of a type such as "a number or a text" are one clause, of the key itself.
    """
    by_key: dict[str, list[Any]] = {}
    for error in errors:
        by_key.setdefault(".".join(_path(error["loc"])), []).append(error)
    return "; ".join(_clause(key, found) for key, found in list(by_key.items())[:_MOST])


def _clause(key: str, errors: list[Any]) -> str:
    error = errors[0]
    if error["type"] == "extra_forbidden":
        return _unknown(key)
    messages = [each["msg"].removeprefix("Value error, ") for each in errors]
    shown = "" if isinstance(error.get("input"), dict) else f" (got {quoted(error.get('input'))})"
    if error["type"] == "value_error" and (inner := _inner(key, messages[0])):
        return cut(inner, 160)
    return f"{cut(key, 60) or 'recipe'}: {cut(_plainly(messages), 160)}{shown}"


_WORDS = {"integer": "a whole number", "number": "a number", "string": "text"}
_WORDS |= {"boolean": "true or false", "dictionary": "a table", "list": "a list", "tuple": "a list"}


def _plainly(messages: Sequence[str]) -> str:
    """What pydantic accepts, as one sentence."""
    accepted = []
    for message in messages:
        found = re.match("Input should be (a valid (?P<kind>[a-z]+))?(?P<rest>.*)", message)
        if found is None:
            return message
        accepted.append(_WORDS.get(found["kind"] or "", found["rest"] or message))
    return "must be " + " or ".join(dict.fromkeys(accepted))


def _inner(key: str, message: str) -> str | None:
    """A check of a whole section names a key of it first: that is the key to blame."""
    first = re.match(r"[a-z_.]+", message)
    if first is None or not first[0]:
        return None
    section = _section(key.split(".") if key else [])
    own = section is not None and first[0].partition(".")[0] in section.model_fields
    return f"{key}.{message}" if own and key else message if own else None


def _unknown(key: str) -> str:
    """An unknown key, and the one that was meant: beside it, or of that name in another section."""
    *before, name = key.split(".")
    section = _section(before)
    known = sorted(section.model_fields) if section is not None else []
    told = f"unknown key {quoted(key)}"
    prefix = "".join(f"{part}." for part in before)
    everywhere = recipe_keys()
    meant = [each for each in everywhere if each.endswith(f".{name}")]
    meant = meant or [prefix + each for each in get_close_matches(name[:64], known, n=1)]
    if not meant:
        leaves = {each.rpartition(".")[2]: each for each in everywhere}
        meant = [leaves[each] for each in get_close_matches(name[:64], leaves, n=1, cutoff=0.75)]
    if meant:
        return f"{told}; did you mean {' or '.join(map(repr, meant[:3]))}?"
    likeliest = sorted(known, key=lambda each: -SequenceMatcher(None, name[:64], each).ratio())
    return f"{told}; accepted there: {', '.join(likeliest)}"


def _path(location: Sequence[Any]) -> list[str]:
    """The key that an error is about, without the branches of types that pydantic adds to it."""
    path: list[str] = []
    section: Any = Recipe
    for part in map(str, location):
        if part.isdecimal():
            path.append(part)
            continue
        if section is None:
            break
        path.append(part)
        section = _below(section, part)
    return path


def _section(path: Sequence[str]) -> type[BaseModel] | None:
    """The section that a key leads to; None for a value, or for nothing."""
    section: type[BaseModel] | None = Recipe
    for part in path:
        if section is not None and not part.isdecimal():
            section = _below(section, part)
    return section


def _below(section: type[BaseModel], name: str) -> type[BaseModel] | None:
    """The section under a key, that of each segment for the stack."""
    field = section.model_fields.get(name)
    return None if field is None else _model_in(field.annotation)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_model_in, get_args(annotation))), None)


def _keys(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in section.model_fields.items():
        below = _model_in(field.annotation)
        number = "" if below is None or field.annotation is below else ".N"
        if below is None:
            yield prefix + name
        else:
            yield from _keys(below, f"{prefix}{name}{number}.")
