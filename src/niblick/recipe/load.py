"""From TOML text, shipped names and `--set` overrides to a Recipe, and back to TOML."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from niblick.errors import RecipeError
from niblick.files import package_folder
from niblick.limits import MAX_RECIPE_BYTES, cut, did_you_mean, quoted
from niblick.recipe.explain import explain
from niblick.recipe.schema import Recipe
from niblick.registry import load_installed_plugins, loaded_plugins


def list_recipes() -> list[str]:
    """Names of the recipes shipped with the package, sorted."""
    folder = package_folder() / "recipes"
    return sorted(
        entry.name.removesuffix(".toml")
        for entry in folder.iterdir()
        if entry.name.endswith(".toml")
    )


def load_recipe(source: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """A shipped recipe's name or a TOML file's path, with `key=value` overrides applied in order.

    Raises `RecipeError` naming the key, the value and what is accepted.
    """
    values = _apply(_parse(_read(str(source)), str(source)), overrides)
    return recipe_from_dict(_with_nulls(values), origin=str(source))


def recipe_from_dict(
    values: dict[str, Any], *, origin: str = "recipe", overrides: Sequence[str] = ()
) -> Recipe:
    """Validate plain values (as TOML or JSON gives them), with `key=value` overrides, into a frozen
    Recipe.
    """
    if overrides:
        values = _with_nulls(_apply(deepcopy(values), overrides))
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        raise RecipeError(f"{origin}: {cut(explain(error.errors()), 160)}") from None
    except RecursionError:
        raise RecipeError(f"{origin} is nested too deeply to be a recipe") from None
    if recipe.plugins:
        _need_plugins(recipe)
    return recipe


def keyed(settings: Iterable[str]) -> dict[str, str]:
    """Key -> text of settings such as `model.dim=96`, none of them checked."""
    parts = (setting.partition("=") for setting in settings)
    return {key.strip(): text.strip() for key, _, text in parts}


def changed(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """`recipe` with the values of `changes` under their keys (`training.muon.lr`), checked anew."""
    values: Any = recipe.model_dump(mode="json")
    for key, value in changes.items():
        *path, leaf = key.split(".")
        node = values
        for part in path:
            node = node[part]
        node[leaf] = value
    return recipe_from_dict(values, origin=recipe.name)


def _need_plugins(recipe: Recipe) -> None:
    """Refuse a recipe whose plugins are not loaded: a file never decides what code is imported."""
    load_installed_plugins()
    for module in recipe.plugins:
        if module not in loaded_plugins():
            raise RecipeError(
                f"recipe {recipe.name!r} needs the plugin {quoted(module)}; give --plugin"
                f" {cut(module, 60)}"
            )


def recipe_to_toml(recipe: Recipe) -> str:
    """The resolved recipe as TOML that `load_recipe` reads back to an equal object ("null" stands
    for None).
    """
    lines: list[str] = []
    _write_table(lines, "", recipe.model_dump(mode="json"))
    return "\n".join(lines).strip() + "\n"


def read_tables(path: Path) -> dict[str, dict[str, Any]]:
    """A TOML file that holds tables only, by name; `RecipeError` says what is wrong with it."""
    values = _parse(_read_file(path), str(path))
    for name, value in values.items():
        if not isinstance(value, dict):
            raise RecipeError(f"{str(path)!r}: {quoted(name)} is not a table")
    return values


def _read(source: str) -> str:
    if source in list_recipes():
        return (package_folder() / "recipes" / f"{source}.toml").read_text("utf-8")
    path = Path(source)
    if "\0" in source or not path.is_file():
        names = list_recipes()
        like = did_you_mean(source, names)
        known = "" if like else f"; shipped: {', '.join(names)}; or give a TOML file's path"
        raise RecipeError(f"no recipe {source!r}{like or known}")
    return _read_file(path)


def _read_file(path: Path) -> str:
    source = str(path)
    try:
        with path.open("rb") as file:
            data = file.read(MAX_RECIPE_BYTES + 1)
        if len(data) > MAX_RECIPE_BYTES:
            raise RecipeError(f"recipe {source!r} is longer than {MAX_RECIPE_BYTES:,} bytes")
        return data.decode("utf-8-sig")
    except OSError as error:
        raise RecipeError(f"cannot read recipe {source!r}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise RecipeError(f"cannot read recipe {source!r}: {cut(error, 120)}") from None


def _parse(text: str, origin: str) -> dict[str, Any]:
    import tomllib

    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # a number may have too many digits
        raise RecipeError(f"{origin} is not valid TOML: {cut(error, 120)}") from None


def _apply(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    for item in overrides:
        key, separator, text = item.partition("=")
        if not separator or not key.strip():
            raise RecipeError(f"--set {quoted(item)} is not of the form key=value")
        _assign(values, key.strip().split("."), _value(text.strip()), item)
    return values


def _with_nulls(value: Any) -> Any:
    """TOML has no null: the text "null" stands for it anywhere in a recipe."""
    if isinstance(value, dict):
        return {key: _with_nulls(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_nulls(item) for item in value]
    return None if value == "null" else value


def _value(text: str) -> Any:
    """A TOML value where it parses as one, else the bare text."""
    import tomllib

    try:
        return tomllib.loads(f"v = {text}")["v"]
    except (ValueError, RecursionError):
        return text


def _assign(values: dict[str, Any], path: list[str], value: Any, item: str) -> None:
    node: Any = values
    for part in path[:-1]:
        if isinstance(node, list):
            node = node[_index(node, part, item)]
        elif isinstance(node, dict):
            node = node.setdefault(part, {})
    if isinstance(node, list):
        node[_index(node, path[-1], item)] = value
    elif isinstance(node, dict):
        node[path[-1]] = value
    else:
        raise RecipeError(
            f"--set {quoted(item)}: {cut('.'.join(path[:-1]), 60)} is a value, not a table"
        )


def _index(node: list[Any], part: str, item: str) -> int:
    if not part.isdecimal() or len(part) > 6 or int(part) >= len(node):
        raise RecipeError(
            f"--set {quoted(item)}: {quoted(part)} is not an index into a list of {len(node)}"
        )
    return int(part)


def toml_value(value: Any) -> str:
    """A value on one line, as a TOML file has it and `--set` takes it; "null" for None."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {toml_value(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(toml_value, value)) + "]"
    if value is None or isinstance(value, bool | int | float | str):
        text = json.dumps("null" if value is None else value, ensure_ascii=False)
        text = text.replace("\x7f", "\\u007f")  # DEL, which JSON leaves alone
        return {"Infinity": "inf", "-Infinity": "-inf", "NaN": "nan"}.get(text, text)
    return str(value)  # a date or a time


def _write_table(lines: list[str], prefix: str, table: dict[str, Any]) -> None:
    nested = {k: v for k, v in table.items() if isinstance(v, dict)}
    arrays = {
        k: v for k, v in table.items() if isinstance(v, list) and v and isinstance(v[0], dict)
    }
    for key, value in table.items():
        if key not in nested and key not in arrays:
            lines.append(f"{key} = {toml_value(value)}")
    for key, value in nested.items():
        lines.append(f"\n[{prefix}{key}]")
        _write_table(lines, f"{prefix}{key}.", value)
    for key, rows in arrays.items():
        for row in rows:
            lines.append(f"\n[[{prefix}{key}]]")
            _write_table(lines, f"{prefix}{key}.", row)
