"""How the recipes of compared runs differ: keys and values, of a run's own recipe.toml."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from niblick.errors import NiblickError
from niblick.recipe import load_recipe
from niblick.scoring.entries import Entry
from niblick.scoring.markup import plain

_NAMES = {"name", "description", "seed"}  # of a run; no choices
_LONGEST = 60  # characters of a value


def recipe_values(folder: Path) -> dict[str, str]:
    """Each key of a run's recipe with its value as text; empty where there is no recipe to read."""
    try:
        values = load_recipe(folder / "recipe.toml").model_dump(mode="json")
    except (NiblickError, OSError):
        return {}
    return {key: shown for key, shown in _flat(values) if key not in _NAMES}


def _flat(values: dict[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{before}{key}.")
        else:
            shown = value if isinstance(value, str) else json.dumps(value)
            yield f"{before}{key}", plain(shown)[:_LONGEST]


def recipe_rows(entries: Sequence[Entry]) -> list[list[str]]:
    """Header and one row per key whose value is not the same in all runs that have a recipe; no
    rows where fewer than two have one or they agree.
    """
    known = {}
    for entry in entries:
        folder = entry.seeds[0].folder
        if folder is not None and (values := recipe_values(folder)):
            known[entry.name] = values
    if len(known) < 2:
        return []
    keys = dict.fromkeys(key for values in known.values() for key in values)
    rows = [[key, *(values.get(key, "-") for values in known.values())] for key in keys]
    rows = [row for row in rows if len(set(row[1:])) > 1]
    return [["recipe key", *known], *rows] if rows else []
