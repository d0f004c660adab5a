"""Dropout of table rows: what is drawn, for whom, and what it does to the model's input."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from niblick.errors import RecipeError
from niblick.model import LanguageModel
from niblick.objective import training_loss
from niblick.recipe import Recipe
from niblick.runtime import World
from niblick.scoring.techniques import without
from niblick.training.dropout import Dropout
from training_runs import digest, run, tiny_dataset, tiny_recipe

SHARES = st.floats(0, 0.95)


def _recipe(**shares: float) -> Recipe:
    return tiny_recipe(dropout=shares, batch_tokens=256)


@settings(max_examples=25, deadline=None)
@given(token=SHARES, bigram=SHARES, step=st.integers(0, 10**6), size=st.sampled_from([2, 4]))
def test_the_rows_of_all_processes_are_those_of_one(
    token: float, bigram: float, step: int, size: int
) -> None:
    recipe = _recipe(token=token, bigram=bigram)
    whole = Dropout(recipe, World(), "cpu").draw(step)
    assert set(whole) == {name for name, share in (("token", token), ("bigram", bigram)) if share}
    for name, factor in whole.items():
        parts = [Dropout(recipe, World(rank, size), "cpu").draw(step)[name] for rank in range(size)]
        assert torch.equal(torch.stack(parts, dim=1).flatten(0, 1), factor)


@settings(max_examples=25, deadline=None)
@given(share=st.floats(0.05, 0.95))
def test_a_row_is_dropped_or_scaled_so_that_its_mean_stays(share: float) -> None:
    draws = torch.cat(
        [Dropout(_recipe(bigram=share), World(), "cpu").draw(step)["bigram"] for step in range(40)]
    )
    values = draws.unique()
    torch.testing.assert_close(values, torch.tensor([0.0, 1 / (1 - share)]))
    standard_error = (share / (1 - share) / draws.numel()) ** 0.5
    assert abs(float(draws.mean()) - 1) < 6 * standard_error


def test_steps_seeds_and_tables_draw_independently() -> None:
    recipe = _recipe(token=0.5, bigram=0.5)
    dropout = Dropout(recipe, World(), "cpu")
    other = Dropout(recipe.model_copy(update={"seed": recipe.seed + 1}), World(), "cpu")
    first, again = dropout.draw(3), dropout.draw(3)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["token"], first["bigram"])
    assert not torch.equal(first["token"], dropout.draw(4)["token"])
    assert not torch.equal(first["token"], other.draw(3)["token"])


def test_a_table_that_is_dropped_everywhere_gets_no_gradient() -> None:
    recipe = _recipe(bigram=0.5)
    model = LanguageModel(recipe.model)
    torch.nn.init.normal_(model.bigram.proj.weight)
    tokens = torch.arange(33)[None] % recipe.model.vocab_size
    for factor, silent in ((0.0, True), (2.0, False)):
        model.zero_grad()
        factors = {"bigram": torch.full((1, 32, 1), factor)}
        training_loss(model, tokens[:, :-1], tokens[:, 1:], factors)[0].backward()
        assert model.bigram.embed.weight.grad is not None
        assert (float(model.bigram.embed.weight.grad.abs().sum()) == 0) is silent


def test_dropout_changes_training_and_nothing_after_it(tmp_path: Path) -> None:
    dataset = tiny_dataset(tmp_path / "shards")
    plain = run(tiny_recipe(), dataset, tmp_path / "plain")
    zero = run(tiny_recipe(dropout={"token": 0.0}), dataset, tmp_path / "zero")
    dropped = run(tiny_recipe(dropout={"token": 0.2, "bigram": 0.2}), dataset, tmp_path / "dropped")
    assert digest(plain) == digest(zero) != digest(dropped)


def test_dropout_is_a_technique_that_can_be_ablated() -> None:
    assert without(_recipe(bigram=0.3), "dropout") == _recipe()


@pytest.mark.parametrize("share", [1.0, -0.1, 1.5])
def test_a_share_outside_0_to_1_is_refused_by_name(share: float) -> None:
    with pytest.raises(RecipeError, match="dropout"):
        _recipe(bigram=share)
