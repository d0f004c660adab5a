"""Recipes: TOML, overrides and their errors."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings

from niblick.errors import RecipeError
from niblick.plan import make_plan
from niblick.recipe import Recipe, list_recipes, load_recipe, recipe_from_dict, recipe_to_toml
from niblick.recipe.model import ModelRecipe
from niblick.units import Duration
from property.plans import model_recipes


@pytest.mark.parametrize("name", list_recipes())
def test_each_shipped_recipe_loads_plans_and_survives_its_own_toml(
    name: str, tmp_path: Path
) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name and recipe.description
    assert make_plan(recipe.model).parameter_count > 0
    path = tmp_path / "again.toml"
    path.write_text(recipe_to_toml(recipe), "utf-8")
    assert load_recipe(path) == recipe
    assert recipe_from_dict(recipe.model_dump(mode="json")) == recipe


def test_full_published_recipes_mix_across_documents_and_the_others_do_not() -> None:
    published = {"token-shift", "depth-recurrent", "sidecar"}
    for name in list_recipes():
        assert load_recipe(name).model.document_mask == (name not in published), name


@settings(max_examples=30, deadline=None)
@given(model=model_recipes())
def test_any_recipe_survives_toml_and_json(
    model: ModelRecipe, tmp_path_factory: pytest.TempPathFactory
) -> None:
    recipe = Recipe(name="any", description='quotes " and \\ and\nnewlines é', model=model)
    path = tmp_path_factory.mktemp("recipe") / "any.toml"
    path.write_text(recipe_to_toml(recipe), "utf-8")
    assert load_recipe(path) == recipe
    assert recipe_from_dict(recipe.model_dump(mode="json")) == recipe


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.dimm=4", ["unknown key 'model.dimm'", "did you mean 'model.dim'?"]),
        ("bogus=1", ["unknown key 'bogus'", "training"]),
        ("training.muon.rate=1", ["unknown key 'training.muon.rate'", "momentum"]),
        ("model.stack.0.loop=2", ["unknown key 'model.stack.0.loop'", "loops"]),
        ("model.dim=wide", ["model.dim", "'wide'", "a whole number"]),
        ("model.dim=-8", ["model.dim", "-8", "greater than 0"]),
        ("model.dim=9", ["dim 9", "attention.heads 8"]),
        ("model.attention.kv_heads=3", ["heads 8", "kv_heads 3"]),
        ("model.attention.rope.dims=7", ["rope.dims 7", "even"]),
        ("model.attention.rope.dims=200", ["rope.dims 200", "head width 64"]),
        (
            "model.attention.xsa_layers=[3]",
            ["xsa_layers", "3 is not an attention layer", "[4, 7, 10]"],
        ),
        ("model.value_embedding.layers=[]", ["value_embedding.layers is empty"]),
        ("model.value_embedding.layers=[10, 10]", ["names a layer twice"]),
        ("model.sidecar.layers=[11]", ["sidecar.layers", "11 is not a layer"]),
        ("model.bos_id=1024", ["bos_id 1024", "vocabulary of 1024"]),
        ("model.mlp.width=0.0001", ["mlp.width 0.0001"]),
        ("model.mlp.width=1e308", ["mlp.width", "64"]),
        ("model.stack.0.layers=[]", ["1 to 256 layers"]),
        ('model.stack.0.layers=["window"]', ["'window'", '"window:128"']),
        ('model.stack.0.layers=["full:3"]', ["full:3"]),
        ('model.stack.0.layers=["Full"]', ["'Full'"]),
        ("model.stack.0.name=plan", ["'plan'", '"_blocks"']),
        ("model.softcap=0", ["softcap", "greater than 0"]),
        ("model.embedding.init=uniform", ["'uniform'", "overtone"]),
        ("training.duration=soon", ["training.duration", "'soon'", "600s"]),
        ("training.duration=600", ["training.duration", "must be text"]),
        ("training.batch_tokens=1000", ["batch_tokens 1000", "sequence_length 1024"]),
        ("training.schedule.warmdown=90s", ["warmdown", "90s", "3500 steps"]),
        ("training.schedule.warmdown=long", ["'long'", "3500 steps"]),
        ("training.averaging.decay=1.5", ["decay", "1.5"]),
        ("training.muon.lr=nan", ["muon.lr", "nan"]),
        ("artifact.max_bytes=0", ["artifact.max_bytes"]),
        ("name=../up", ["name", "../up"]),
        ("model.dim", ["'model.dim'", "key=value"]),
        ("=4", ["'=4'"]),
        ("model.stack.4.loops=2", ["'4'", "list of 1"]),
        ("model.dim.x=2", ["model.dim is a value"]),
    ],
)
def test_a_wrong_setting_is_one_line_that_names_key_value_and_what_is_accepted(
    override: str, words: list[str]
) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe("token-shift", [override])
    for word in words:
        assert word in str(caught.value)
    assert caught.value.exit_code == 2


def test_an_unknown_recipe_is_refused_with_the_shipped_names() -> None:
    with pytest.raises(RecipeError, match=r"no recipe 'nothing'; shipped: .*token-shift.*TOML"):
        load_recipe("nothing")


def test_text_that_is_not_toml_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "broken.toml"
    path.write_text("a = = 1")
    with pytest.raises(RecipeError, match=r"broken\.toml is not valid TOML"):
        load_recipe(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="cannot read recipe"):
        load_recipe(path)


def test_overrides_apply_in_order_and_take_bare_words_toml_values_and_null() -> None:
    recipe = load_recipe(
        "token-shift",
        [
            "seed=3",
            "seed=4",
            "data.tokenizer=bytes",
            "model.softcap=null",
            "model.stack.0.layers=['full*11']",
            "training.duration=2e6 tokens",
            "training.schedule.warmdown=0.3",
            "model.smear.enabled=false",
        ],
    )
    assert recipe.seed == 4 and recipe.data.tokenizer == "bytes" and recipe.model.softcap is None
    assert len(recipe.model.stack[0].blocks) == 11 and recipe.training.duration == "2e6 tokens"
    assert recipe.training.schedule.warmdown == 0.3 and not recipe.model.smear.enabled


def test_recipes_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_recipe("token-shift").seed = 1  # type: ignore[misc]


def test_durations_are_read_with_their_unit_and_printed_so_that_they_read_back() -> None:
    wanted = {
        "600s": (600, "seconds"),
        "10 min": (600, "seconds"),
        "0.5h": (1800, "seconds"),
        "3500 steps": (3500, "steps"),
        "1 step": (1, "steps"),
        "2e6 tokens": (2_000_000, "tokens"),
    }
    for text, (amount, unit) in wanted.items():
        duration = Duration.parse(text)
        assert (duration.amount, duration.unit) == (amount, unit)
        assert Duration.parse(str(duration)) == duration
    assert Duration.parse("10 steps").fraction(seconds=1, steps=5, tokens=7) == 0.5


@pytest.mark.parametrize(
    "text", ["", "600", "s", "-5s", "0s", "1.5 steps", "5 parsecs", "1e999s", "inf s"]
)
def test_what_is_not_a_duration_is_refused(text: str) -> None:
    with pytest.raises(RecipeError, match="duration"):
        Duration.parse(text)
