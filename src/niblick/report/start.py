"""What a run starts with: a recipe as the user gives it, or the weights of a model with the recipe,
shape and tokenizer that belong to them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from niblick.artifact.load import exported_recipe, find_model, open_file, shipped_models
from niblick.data.recipes import read_recipe
from niblick.errors import NiblickError
from niblick.limits import cut, quoted
from niblick.plan import Plan, make_plan
from niblick.recipe import Recipe, changed, keyed, list_recipes, load_recipe
from niblick.report.own_text import CHOSEN, DURATION, RATES, given_keys
from niblick.report.shapes import SHAPE


@dataclass(frozen=True)
class Start:
    """A recipe, the keys that are decided, where the tokenizer is (None: the recipe says), and the
    shipped recipe whose shape may follow the cap (empty: none).
    """

    recipe: Recipe
    given: set[str]
    tokenizer: str | None
    shaped_as: str


def start(
    source: str | Path | Recipe | None,
    settings: Sequence[str] = (),
    *,
    init_from: str | Path | None = None,
    tokenizer: str | Path | None = None,
    duration: str | None = None,
    max_bytes: int | None = None,
    seed: int | None = None,
) -> Start:
    """How a run starts: with a recipe's name, its file, or a `Recipe`, which decides everything; it
    may be None where the run starts from a model, whose own is taken then. Settings are as
    `read_recipe` takes them.

    Raises `ArtifactError` where there is no such model, `NiblickError` for a setting of its shape.
    """
    given = None if tokenizer is None else str(tokenizer)
    named: dict[str, Any] = {"duration": duration, "max_bytes": max_bytes, "seed": seed}
    if source is not None and not isinstance(source, (str, Path)):
        if settings or init_from is not None or any(v is not None for v in named.values()):
            raise NiblickError("a Recipe object decides everything: change it before the call")
        return Start(source, set(CHOSEN), given, "")
    if init_from is not None:
        return _from_model(init_from, source, settings, tokenizer, named)
    if source is None:
        raise NiblickError("give a RECIPE (see `niblick recipes`), --from MODEL or --resume RUN")
    return Start(
        read_recipe(source, settings, **named),
        given_keys(source, settings, duration),
        given,
        str(source),
    )


def _from_model(
    model: str | Path,
    source: str | Path | None,
    settings: Sequence[str],
    tokenizer: str | Path | None,
    named: dict[str, Any],
) -> Start:
    path = find_model(model)
    opened = open_file(path)
    name = path.stem if path in shipped_models().values() else str(path.absolute())
    keys, base = keyed(settings).keys(), _base(opened.recipe, source)
    if base.training.init_from not in ("", name) or "training.init_from" in keys:
        raise NiblickError(f"--from {cut(model, 60)} and training.init_from: give one of them")
    if opened.tokenizer is not None and (tokenizer is not None or "data.tokenizer" in keys):
        raise NiblickError(f"{quoted(str(model))} brings its tokenizer: give no other")
    recipe = read_recipe(base, settings, **named)
    if _shape(make_plan(exported_recipe(recipe).model)) != _shape(opened.plan):
        odd = next((key for key in keys if key.startswith("model.")), "model....")
        raise NiblickError(f"{quoted(str(model))} has its shape: no --set {odd}")
    decided = set(CHOSEN)  # by a recipe file, as in `given_keys`
    if source is None or str(source) in list_recipes():
        decided = {*keys, *([DURATION] if named["duration"] is not None else [])}
    if source is None and opened.recipe.name not in list_recipes():
        decided |= set(RATES) if opened.recipe.training.init_from else set()  # chosen before
    given = None if tokenizer is None else str(tokenizer)
    reader = given if opened.tokenizer is None else name
    begun = changed(recipe, {"training.init_from": name})
    return Start(begun, decided | set(SHAPE), reader, "")


def _base(own: Recipe, source: str | Path | None) -> Recipe:
    """The recipe to go on with, in the shape of the model, whose own recipe is `own`.

    A model that a shipped recipe made goes on with that recipe's training: what an earlier run
    chose for its text says nothing of another.
    """
    if source is not None:
        shape = {"model": own.model, "plugins": own.plugins}
        return read_recipe(source).model_copy(update=shape)
    if own.name not in list_recipes():
        training = own.training.model_copy(update={"init_from": ""})
    else:
        training = load_recipe(own.name).training
    return own.model_copy(update={"training": training})


def _shape(plan: Plan) -> set[tuple[str, tuple[int, ...]]]:
    return {(parameter.name, tuple(parameter.shape)) for parameter in plan.exported}
