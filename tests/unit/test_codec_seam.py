"""A codec is one object: registered, it packs, opens, is planned for and stands on cards."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from decoded import floats
from niblick.artifact import open_file
from niblick.artifact.sizes import artifact_sizes
from niblick.codecs import CODECS, Codec, Encoded, Job, RoundingSpec, Tensor, noisy, rounding_specs
from niblick.codecs.base import Sizes, TensorRow, apportion
from niblick.compression.packing import pack
from niblick.errors import ArtifactError, NiblickError, RecipeError
from niblick.model import LanguageModel
from niblick.plan import Plan, make_plan
from niblick.recipe import Recipe, list_recipes, load_recipe, recipe_from_dict
from niblick.scoring.techniques import techniques


class Verbatim(Codec):
    """Every tensor as float32, deflated."""

    name = "verbatim"

    def encode(self, job: Job) -> Encoded:
        raw = b"".join(job.tensors[p.name].tobytes() for p in job.plan.exported)
        payload = zlib.compress(raw)
        sizes = apportion(len(payload), [p.size for p in job.plan.exported])
        members = zip(job.plan.exported, sizes, strict=True)
        rows = {p.name: TensorRow(size, p.size) for p, size in members}
        return Encoded(payload, {"values": len(payload)}, rows, dict(job.tensors))

    def decode(self, payload: bytes, recipe: Recipe, plan: Plan) -> dict[str, Tensor]:
        values, at = np.frombuffer(zlib.decompress(payload), dtype="<f4"), 0
        found: dict[str, Tensor] = {}
        for p in plan.exported:
            found[p.name] = values[at : at + p.size].reshape(p.shape)
            at += p.size
        return found

    def sizes(self, recipe: Recipe, plan: Plan, other: int) -> Sizes:
        return 5 * plan.parameter_count + 100, 4 * plan.parameter_count


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """A small recipe that asks for the codec of this file, which is registered for the test."""
    monkeypatch.setattr(CODECS, "_entries", dict(CODECS._entries))
    CODECS.register("verbatim")(Verbatim())
    model: dict[str, Any] = {
        "vocab_size": 260,
        "dim": 16,
        "context": 16,
        "stack": [{"layers": ["token-shift", "full"]}],
        "attention": {"heads": 2, "kv_heads": 1, "rope": {"dims": 4}},
    }
    artifact = {"codec": "verbatim", "max_bytes": 1_000_000}
    return recipe_from_dict(
        {"name": "small", "model": model, "data": {"tokenizer": "bytes"}, "artifact": artifact}
    )


def test_a_codec_of_ones_own_packs_and_opens(recipe: Recipe, tmp_path: Path) -> None:
    weights = LanguageModel(recipe.model, seed=1).state_dict()
    packed = pack(weights, recipe, None, tmp_path / "a.nib")
    opened = floats(open_file(tmp_path / "a.nib").tensors)
    assert all((opened[name] == tensor).all() for name, tensor in weights.items())
    assert packed.size == (tmp_path / "a.nib").stat().st_size
    bound, estimate = artifact_sizes(recipe, make_plan(recipe.model))
    assert estimate > packed.ledger.parts["values"] and bound >= packed.size


def test_a_file_of_a_codec_that_is_not_there_names_those_that_are(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack(LanguageModel(recipe.model, seed=1).state_dict(), recipe, None, tmp_path / "a.nib")
    monkeypatch.delitem(CODECS._entries, "verbatim")
    with pytest.raises(ArtifactError, match="unknown codec 'verbatim'; this build reads"):
        open_file(tmp_path / "a.nib")
    with pytest.raises(NiblickError, match="unknown codec 'verbatim'; known: int-zlib, rd"):
        artifact_sizes(recipe, make_plan(recipe.model))


def test_a_card_names_the_codec_as_it_describes_itself(recipe: Recipe) -> None:
    found = techniques(recipe, make_plan(recipe.model))
    assert found["quantization"][0]["name"] == "verbatim codec"
    assert found["compression"] == [{"name": "verbatim"}]


def test_late_rounding_with_a_codec_that_has_none_is_refused_by_both_names(recipe: Recipe) -> None:
    plan = make_plan(recipe.model)
    asked = recipe_from_dict(recipe.model_dump() | {"training": {"qat": {"enabled": True}}})
    with pytest.raises(RecipeError, match=r"training\.qat\.enabled .*artifact\.codec 'verbatim'"):
        rounding_specs(asked, plan)
    assert rounding_specs(asked, plan, refuse=False) == rounding_specs(recipe, plan) == {}
    rounds = recipe_from_dict(recipe.model_dump() | {"artifact": {"codec": "int-zlib"}})
    assert rounding_specs(rounds, plan)["tok_emb.weight"] == RoundingSpec(8)


@pytest.mark.parametrize("name", list_recipes())
def test_no_shipped_recipe_asks_for_rounding_in_vain(name: str) -> None:
    recipe = load_recipe(name)
    rounds = bool(rounding_specs(recipe, make_plan(recipe.model)))
    assert recipe.training.qat.enabled in ("auto", rounds or noisy(recipe))
