"""The shape that a cap wants: fewer weights once a recipe's own would have too few bits each.

Measured in "A model for every size" (docs/experiments.md).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import suppress
from typing import Any

from niblick.artifact.sizes import artifact_sizes, fixed_bytes
from niblick.codecs import CODECS
from niblick.errors import RecipeError
from niblick.plan import make_plan
from niblick.recipe import Recipe, changed, keyed, list_recipes, load_recipe
from niblick.text.learning import TRAINED

VOCABULARY, WIDTH = "model.vocab_size", "model.dim"
SHAPE = (
    *(VOCABULARY, WIDTH, "model.bigram.buckets", "model.bigram.width"),
    "model.value_embedding.width",
)
_PATIENCE = "training.qat.min_passes"
_PARTS = (0.875, 0.75, 0.625, 0.5)  # of the recipe's width
LEAST_BITS, _FEW = 1.5, 2.4  # bits a weight: for a shape to be taken, and for late QAT to pay soon


def fit_named(source: str, recipe: Recipe, settings: Collection[str]) -> tuple[Recipe, list[str]]:
    """`fit_cap` for the shipped recipe `source` under a smaller cap than its own.

    A recipe file, and one of which `settings` set any part of the model, stays as it is.
    """
    given = keyed(settings)
    if source not in list_recipes() or any(key.startswith("model.") for key in given):
        return recipe, []
    if recipe.artifact.max_bytes >= load_recipe(source).artifact.max_bytes:
        return recipe, []
    return fit_cap(recipe, given)


def fit_cap(recipe: Recipe, given: Collection[str] = ()) -> tuple[Recipe, list[str]]:
    """`recipe` in the largest shape that its cap has room for, and what changed in a sentence.

    Width, vocabulary and tables become smaller together; keys that are `given` stay. Where nothing
    fits, the smallest shape.
    """
    found = recipe
    for found in _shapes(recipe, given):
        if _fits(found):
            break
    said = _changes(recipe, found)
    waits = found.training.qat.min_passes > 0 and _PATIENCE not in given
    if waits and bits_per_weight(found) < _FEW:
        found = changed(found, {_PATIENCE: 0.0})
    return found, said


def bits_per_weight(recipe: Recipe) -> float:
    """What the cap leaves each weight, in bits."""
    room = max(recipe.artifact.max_bytes - fixed_bytes(recipe), 0)
    return 8 * room / make_plan(recipe.model).parameter_count


def _fits(recipe: Recipe) -> bool:
    if CODECS[recipe.artifact.codec].fills_cap:
        return bits_per_weight(recipe) >= LEAST_BITS
    return artifact_sizes(recipe, make_plan(recipe.model))[1] <= recipe.artifact.max_bytes


def _shapes(recipe: Recipe, given: Collection[str]) -> Iterator[Recipe]:
    """From the recipe's own shape down to half its width."""
    yield recipe
    model = recipe.model
    for part in _PARTS:
        changes: dict[str, Any] = {WIDTH: round(part * model.dim)}  # keys: those of SHAPE
        if recipe.data.tokenizer in TRAINED:
            changes[VOCABULARY] = _whole(model.vocab_size * part**1.5, 512)
        if model.bigram.enabled:
            changes["model.bigram.buckets"] = _whole(model.bigram.buckets * part**2, 1024)
            changes["model.bigram.width"] = round(part * model.bigram.width)
        if model.value_embedding.enabled:
            changes["model.value_embedding.width"] = round(part * model.value_embedding.width)
        left = {key: value for key, value in changes.items() if key not in given}
        with suppress(RecipeError):  # heads that do not divide such a width
            yield changed(recipe, left)


def _whole(size: float, step: int) -> int:
    """The multiple of `step` next to `size`, for a `size` of some steps; else of a tenth of it."""
    step = step if size >= 2 * step else max(step // 10, 1)
    return max(round(size / step), 1) * step


def _changes(recipe: Recipe, found: Recipe) -> list[str]:
    """In a sentence what a smaller shape is, and why."""
    if found.model == recipe.model:
        return []
    own, new, cap = recipe.model, found.model, recipe.artifact.max_bytes
    tables = f", {new.bigram.buckets:,} bigrams" if new.bigram != own.bigram else ""
    millions = [make_plan(model).parameter_count / 1e6 for model in (own, new)]
    return [
        f"width {new.dim}, vocabulary {new.vocab_size:,}{tables}: in {cap:,} bytes its"
        f" {millions[1]:.2f} million weights have {bits_per_weight(found):.1f} bits each, the"
        f" {millions[0]:.2f} million of the recipe's own shape {bits_per_weight(recipe):.1f}"
    ]
