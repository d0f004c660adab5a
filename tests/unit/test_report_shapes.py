"""The shape of a recipe under a smaller cap than its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from commands import run
from niblick.artifact.sizes import artifact_sizes
from niblick.plan import make_plan
from niblick.recipe import Recipe, changed, load_recipe, recipe_to_toml
from niblick.report.shapes import bits_per_weight, fit_cap

CAPS = (60_000, 100_000, 200_000, 300_000, 400_000, 500_000, 700_000, 1_000_000)


def capped(name: str, cap: int, **changes: object) -> Recipe:
    return changed(load_recipe(name), {"artifact.max_bytes": cap, **changes})


@pytest.mark.parametrize("name", ["pocket", "pocket-ensemble", "token-shift-small"])
def test_more_bytes_never_get_a_smaller_model_and_weights_have_bits_enough(name: str) -> None:
    found = [fit_cap(capped(name, cap))[0] for cap in CAPS]
    for measure in (
        [make_plan(each.model).parameter_count for each in found],
        [each.model.dim for each in found],
        [each.model.vocab_size for each in found],
    ):
        assert measure == sorted(measure)
    own = load_recipe(name).model
    for each in found:
        assert bits_per_weight(each) >= 1.5 or 2 * each.model.dim == own.dim
        assert each.model.stack == own.stack
    assert found[-1].model == own and found[2].model.dim < own.dim


def test_a_smaller_shape_is_told_with_the_bits_of_its_weights_and_of_the_recipe_s_own() -> None:
    recipe = capped("pocket", 300_000)
    found, (said,) = fit_cap(recipe)
    assert said.startswith(f"width {found.model.dim}, vocabulary {found.model.vocab_size:,}, ")
    assert f"{bits_per_weight(found):.1f} bits each" in said
    assert f"own shape {bits_per_weight(recipe):.1f}" in said
    assert fit_cap(load_recipe("pocket")) == (load_recipe("pocket"), [])
    assert bits_per_weight(capped("pocket", 100)) == 0


def test_late_qat_does_not_wait_where_weights_have_few_bits() -> None:
    waits = load_recipe("pocket").training.qat.min_passes
    assert waits > 0
    assert fit_cap(capped("pocket", 700_000))[0].training.qat.min_passes == 0
    assert fit_cap(capped("pocket", 950_000))[0].training.qat.min_passes == waits
    given = {"training.qat.min_passes"}
    assert fit_cap(capped("pocket", 700_000), given)[0].training.qat.min_passes == waits


def test_given_keys_and_a_vocabulary_that_is_not_learnt_stay() -> None:
    recipe = capped("pocket", 200_000, **{"model.vocab_size": 1500})
    found, _ = fit_cap(recipe, {"model.vocab_size"})
    assert found.model.vocab_size == 1500 and found.model.dim < recipe.model.dim
    fixed, _ = fit_cap(capped("token-shift", 1_600_000))
    assert fixed.model.vocab_size == load_recipe("token-shift").model.vocab_size


def test_a_codec_of_fixed_bits_gets_a_model_that_its_estimate_holds() -> None:
    recipe = capped("pocket", 1_000_000, **{"artifact.codec": "int-zlib"})
    recipe = changed(recipe, {"training.qat.enabled": "auto"})
    found, _ = fit_cap(recipe)
    estimates = [artifact_sizes(each, make_plan(each.model))[1] for each in (recipe, found)]
    assert estimates[0] > 1_000_000 >= estimates[1]


def test_train_shapes_a_shipped_recipe_and_leaves_files_and_what_is_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained: list[Recipe] = []
    monkeypatch.setattr("niblick.cli.runs.run_once", lambda recipe, *_: trained.append(recipe))
    smaller = ("--max-bytes", "300000")
    assert run("train", "pocket", *smaller) == 0
    assert "of the recipe's own shape" in capsys.readouterr().err
    (tmp_path / "mine.toml").write_text(recipe_to_toml(load_recipe("pocket")), "utf-8")
    assert run("train", "pocket", *smaller, "--set", "model.dim=128") == 0
    assert run("train", str(tmp_path / "mine.toml"), *smaller) == 0
    assert run("train", "pocket", "--set", "artifact.max_bytes=1200000") == 0
    assert capsys.readouterr().err == ""
    own = load_recipe("pocket")
    assert trained[0].model.dim < own.model.dim
    assert [each.model for each in trained[1:]] == [own.model] * 3
