"""A recipe as commands and functions read it: overrides, settings with a name, whole paths."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from niblick.data.corpus import corpora
from niblick.recipe import Recipe, load_recipe, recipe_from_dict
from niblick.text.learning import TRAINED
from niblick.text.tokenizer import CHALLENGE


def read_recipe(
    source: str | Path | Recipe,
    overrides: Sequence[str] = (),
    *,
    duration: str | None = None,
    max_bytes: int | None = None,
    seed: int | None = None,
) -> Recipe:
    """A recipe (a name, a file or itself) with `key=value` overrides, and the settings that have a
    name of their own, last.

    Paths of data, tokenizer and the model to start from become absolute: a run can go on from
    another folder.
    """
    named = [
        f'training.duration="{duration}"' if duration is not None else None,
        f"artifact.max_bytes={max_bytes}" if max_bytes is not None else None,
        f"seed={seed}" if seed is not None else None,
    ]
    settings = [*overrides, *(each for each in named if each)]
    if isinstance(source, (str, Path)):
        recipe = load_recipe(source, settings)
    else:
        recipe = recipe_from_dict(source.model_dump(mode="json"), overrides=settings)
    data = recipe.data.model_copy(
        update={key: _absolute(key, getattr(recipe.data, key)) for key in ("corpus", "tokenizer")}
    )
    if Path(recipe.training.init_from).exists() and recipe.training.init_from:
        start = str(Path(recipe.training.init_from).absolute())
        training = recipe.training.model_copy(update={"init_from": start})
        recipe = recipe.model_copy(update={"training": training})
    return recipe.model_copy(update={"data": data}) if data != recipe.data else recipe


def _absolute(key: str, name: str) -> str:
    """A path that is there, whole; names of corpora and tokenizers stay as they are."""
    if not Path(name).exists():
        return name
    named = name in corpora if key == "corpus" else name in {*TRAINED, "bytes", CHALLENGE}
    return name if named else str(Path(name).absolute())
