"""What the plan says of an artifact's size before training holds for the file."""

from __future__ import annotations

import pytest

from niblick.artifact.sizes import artifact_sizes
from niblick.plan import make_plan
from niblick.recipe import list_recipes, load_recipe
from niblick.text.tokenizer import load_tokenizer


@pytest.mark.parametrize("name", list_recipes())
@pytest.mark.parametrize("codec", ["int-zlib", "rd"])
def test_the_estimate_is_within_the_bound_for_every_recipe_and_codec(name: str, codec: str) -> None:
    recipe = load_recipe(name, [f"artifact.codec={codec}"])
    bound, estimate = artifact_sizes(recipe, make_plan(recipe.model))
    assert 0 < estimate <= bound


def test_a_solved_size_is_estimated_at_the_cap_it_fills() -> None:
    recipe = load_recipe("token-shift", ["artifact.codec=rd", "artifact.max_bytes=12000000"])
    assert abs(artifact_sizes(recipe, make_plan(recipe.model))[1] - 12_000_000) < 10


@pytest.mark.parametrize("name", list_recipes())
def test_every_shipped_recipe_is_estimated_within_its_own_cap(name: str) -> None:
    recipe = load_recipe(name)
    assert artifact_sizes(recipe, make_plan(recipe.model))[1] <= recipe.artifact.max_bytes


def test_a_cap_that_no_file_can_meet_is_foreseen() -> None:
    recipe = load_recipe("token-shift", ["artifact.codec=rd", "artifact.max_bytes=20000"])
    assert artifact_sizes(recipe, make_plan(recipe.model))[1] > 20_000


def test_the_challenges_tokenizer_is_within_its_bound() -> None:
    recipe = load_recipe("token-shift", ["artifact.codec=int-zlib"])
    others = load_recipe("token-shift", ["artifact.codec=int-zlib", "data.tokenizer=bytes"])
    plan = make_plan(recipe.model)
    counted = artifact_sizes(recipe, plan)[0] - artifact_sizes(others, plan)[0] + 16
    assert len(load_tokenizer("fineweb-1024").to_bytes()) <= counted
