"""What a shell's completion offers in place of file names: recipes, models, keys, fixed choices.

Each function takes what has been typed and gives (word, help) pairs or words; where none fits, the
shell offers files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

Completer = Callable[[str], list[str]]


def words(*choices: str) -> Completer:
    """A fixed choice."""
    return lambda incomplete: [word for word in choices if word.startswith(incomplete)]


def recipes(incomplete: str) -> list[str]:
    """Names of the shipped recipes."""
    from niblick.recipe import list_recipes

    return [name for name in list_recipes() if name.startswith(incomplete)]


def models(incomplete: str) -> list[str]:
    """Names of the shipped models."""
    from niblick.artifact.load import shipped_models

    return [name for name in shipped_models() if name.startswith(incomplete)]


def settings(incomplete: str) -> list[str]:
    """Recipe keys, up to their `=`."""
    from niblick.recipe import load_recipe

    keys = _keys(load_recipe("pocket").model_dump(mode="json"))
    return [f"{key}=" for key in keys if key.startswith(incomplete)]


def _keys(values: dict[str, Any], before: str = "") -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _keys(value, f"{before}{key}.")
        else:
            yield f"{before}{key}"


def techniques(incomplete: str) -> list[str]:
    """Names of the techniques that a recipe may use."""
    from niblick.scoring.techniques import all_techniques

    return [each.name for each in all_techniques() if each.name.startswith(incomplete)]
