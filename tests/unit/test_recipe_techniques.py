"""Techniques: each can be taken out of a recipe that has it, and of no other."""

from __future__ import annotations

import pytest

from niblick.errors import RecipeError
from niblick.plan import make_plan
from niblick.recipe import Recipe, list_recipes, load_recipe
from niblick.scoring.techniques import all_techniques, techniques, used_techniques, without

TECHNIQUES = [t.name for t in all_techniques() if t.without]
EVERYTHING = [
    "model.attention.k_gain=true",
    "model.attention.kv_shift=true",
    "model.attention.local_value=true",
    "model.attention.rope.train_length=512",
    "model.document_mask=true",
    "model.document_attention=within",
    "model.embedding.init=overtone",
    "model.residual_mix.init=phase",
    "model.members=2",
    "model.mtp.heads=1",
    "model.skips.enabled=true",
    "model.sidecar.layers=[3]",
    "model.sidecar.enabled=true",
    "model.stack.0.loops=2",
    "model.value_embedding.layers=[10]",
    "training.dropout.bigram=0.3",
    "training.muon.neuron_beta=0.9",
    "data.rows=documents",
    "data.tokenizer=train-unigram-case",
    "training.qat.enabled=true",
    "artifact.codec=int-zlib",
]


@pytest.fixture(scope="module")
def everything() -> Recipe:
    return load_recipe("token-shift", EVERYTHING)


@pytest.mark.parametrize("name", TECHNIQUES)
def test_each_technique_can_be_taken_out_once_and_still_gives_a_plan(
    name: str, everything: Recipe
) -> None:
    after = without(everything, name)
    assert after != everything
    assert make_plan(after.model).parameter_count > 0
    with pytest.raises(RecipeError, match=f"does not use the technique '{name}'"):
        without(after, name)


def test_what_is_taken_out_is_no_longer_among_the_used(everything: Recipe) -> None:
    assert used_techniques(everything) == TECHNIQUES
    after = without(everything, "bigram+smear+xsa")
    assert set(used_techniques(everything)) - set(used_techniques(after)) == {
        "bigram",
        "smear",
        "xsa",
    }


@pytest.mark.parametrize("recipe", list_recipes())
def test_every_shipped_recipe_plans_without_any_one_technique_it_uses(recipe: str) -> None:
    whole = load_recipe(recipe)
    used = used_techniques(whole)
    assert len(used) > 8
    for name in used:
        make_plan(without(whole, name).model)


def test_layers_are_replaced_not_dropped() -> None:
    whole = load_recipe("token-shift")
    mixers = [layer.mixer for layer in make_plan(without(whole, "token-shift").model).layers]
    assert mixers == ["window"] * 10 + ["full"]
    spans = [layer.span for layer in make_plan(without(whole, "window").model).layers]
    assert [spans[i] for i in (4, 7, 10)] == [1024] * 3
    looped = make_plan(without(load_recipe("depth-recurrent"), "loops").model)
    assert len(looped.layers) == looped.weight_blocks == 6


def test_an_unknown_technique_is_refused_with_those_the_recipe_uses() -> None:
    with pytest.raises(
        RecipeError, match=r"unknown technique 'magic'; token-shift uses: .*bigram, smear"
    ):
        without(load_recipe("token-shift"), "bigram+magic")


def test_rounding_that_the_codec_cannot_use_is_no_technique() -> None:
    recipe = load_recipe("token-shift", ["artifact.codec=rd"])
    assert "qat" not in used_techniques(recipe)
    assert "qat" in used_techniques(load_recipe("token-shift", ["artifact.codec=int-zlib"]))


@pytest.mark.parametrize(
    ("changes", "without_it", "gone"),
    [
        ([], "bigram", "'bigram': 0.3"),
        ([], "weight-decay", "decoupled weight decay"),
        ([], "warmdown", "linear warmdown"),
        (["training.optimizer.matrix=adam"], None, "'muon': "),
        (["training.adam.decoupled=false"], None, "'adam': 0.04"),
    ],
)
def test_a_card_names_no_technique_that_a_run_did_not_have(
    changes: list[str], without_it: str | None, gone: str
) -> None:
    def told(recipe: Recipe) -> str:
        found = techniques(recipe, make_plan(recipe.model))
        return str([e for group in found.values() for e in group if e["name"] != "L2 penalty"])

    recipe = load_recipe("token-shift", ["training.dropout.bigram=0.3"])
    assert gone in told(recipe)
    recipe = load_recipe("token-shift", ["training.dropout.bigram=0.3", *changes])
    assert gone not in told(recipe if without_it is None else without(recipe, without_it))
