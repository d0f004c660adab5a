"""What is chosen for a text of one's own, and how sure a score of little text is."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from niblick.data.corpus import Corpus, own_corpus
from niblick.data.dataset import open_dataset
from niblick.errors import DataError, RecipeError
from niblick.plan import make_plan
from niblick.recipe import load_recipe
from niblick.report.own_text import Fitted, fit_data, fit_text
from niblick.scoring.baselines import take_documents
from niblick.scoring.statistics import block_interval
from niblick.text.tokenizer import load_tokenizer
from niblick.units import Duration

WORDS = [f"{a}{b}{c}" for a in "bdfgkmps" for b in "aeiou" for c in ("l", "n", "rst", "mp", "s")]


def text(size: int) -> Corpus:
    """A corpus of documents of 2,000 bytes."""
    draw = random.Random(size)
    documents = [" ".join(draw.choices(WORDS, k=500))[:2000] for _ in range(size // 2000)]
    return own_corpus("mine", documents)


def fitted(size: int, folder: Path, *overrides: str, given: tuple[str, ...] = ()) -> Fitted:
    """`pocket`, with overrides, fitted to so much text."""
    return fit_text(load_recipe("pocket", overrides), text(size), folder / f"{size}", given=given)


def test_more_text_never_gets_a_smaller_model_or_less_training(tmp_path: Path) -> None:
    recipes = [fitted(size, tmp_path).recipe for size in (6_000, 60_000, 300_000)]
    for measure in (
        [r.model.vocab_size for r in recipes],
        [r.model.dim for r in recipes],
        [r.training.batch_tokens for r in recipes],
        [Duration.parse(r.training.duration).amount for r in recipes],
    ):
        assert measure == sorted(measure)
    assert recipes[0].model.vocab_size < load_recipe("pocket").model.vocab_size


@pytest.mark.parametrize("cap", [200_000, 350_000, 500_000])
def test_a_cap_is_kept_with_three_bits_a_weight(tmp_path: Path, cap: int) -> None:
    found = fitted(60_000, tmp_path, f"artifact.max_bytes={cap}")
    plan = make_plan(found.recipe.model)
    fixed = 8192 * 64  # the bigram table, which nothing here chooses
    assert plan.parameter_count * 3 / 8 <= cap or plan.parameter_count - fixed <= cap * 8 / 3


def test_what_is_given_stays_and_nothing_is_said_of_it(tmp_path: Path) -> None:
    keys = ("model.vocab_size", "model.dim", "training.duration", "training.batch_tokens")
    changes = ("model.vocab_size=400", "training.duration='7 steps'", "training.batch_tokens=1024")
    found = fitted(60_000, tmp_path, *changes, given=keys)
    own = load_recipe("pocket", changes)
    assert (found.recipe.model, found.recipe.training) == (own.model, own.training)
    assert not any(line.startswith(("vocabulary", "width", "duration")) for line in found.said)


@pytest.mark.parametrize("key", ["training.sequence_length", "model.context"])
def test_a_given_length_stays_for_the_shortest_text(tmp_path: Path, key: str) -> None:
    assert fitted(4_000, tmp_path / "own").recipe.model.context < 512
    found = fitted(4_000, tmp_path / "given", given=(key,)).recipe
    length = {"training.sequence_length": found.training.sequence_length}
    assert length.get(key, found.model.context) == 512
    assert found.training.batch_tokens % found.training.sequence_length == 0


def test_a_given_vocabulary_must_be_the_tokenizer_s(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"vocab_size=400.*bytes has 260"):
        fit_text(
            load_recipe("pocket", ["model.vocab_size=400"]),
            text(20_000),
            tmp_path / "d",
            given=("model.vocab_size",),
            tokenizer=load_tokenizer("bytes"),
        )


def test_shards_of_another_text_are_not_replaced(tmp_path: Path) -> None:
    fit_text(load_recipe("pocket"), text(20_000), tmp_path / "d")
    with pytest.raises(DataError, match="another text's shards"):
        fit_text(load_recipe("pocket"), text(30_000), tmp_path / "d")


@pytest.mark.parametrize("name", ["sidecar-small", "depth-recurrent-small", "token-shift"])
def test_other_recipes_are_fitted_to_sound_ones(tmp_path: Path, name: str) -> None:
    found = fit_text(load_recipe(name), text(30_000), tmp_path / "d").recipe
    assert found.training.batch_tokens % found.training.sequence_length == 0
    assert found.training.batch_tokens < load_recipe(name).training.batch_tokens


def test_intervals_of_short_texts_cover_the_truth_as_often_as_they_say() -> None:
    random_numbers, covered, rounds = np.random.default_rng(0), 0, 400
    for _ in range(rounds):
        sizes = random_numbers.integers(1, 6, 3000)
        rates = np.repeat(random_numbers.normal(1.5, 0.3, 300), 10)  # ten tokens of one difficulty
        nats = (sizes * rates * np.log(2) * random_numbers.gamma(4, 0.25, 3000)).astype(np.float32)
        interval = block_interval(nats, sizes)
        assert interval is not None
        covered += interval[0] <= 1.5 <= interval[1]
    assert 0.91 <= covered / rounds <= 0.98
    assert block_interval(np.ones(3, np.float32), np.array([200, 200, 200])) is None


def test_documents_for_compressors_end_before_the_limit_and_say_so() -> None:
    whole = take_documents(["ab", "cd"], 6)
    assert (whole.text, whole.cut) == (b"ab\ncd\n", False)
    part = take_documents(["ab", "cd"], 5)
    assert (part.text, part.cut) == (b"ab\n", True)


def test_a_large_text_is_streamed_and_the_recipe_fitted_to_its_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("niblick.data.inputs.LARGE", 1000)
    lines = (json.dumps({"text": f"Text {n} of {n * n} words, not more."}) for n in range(3000))
    (tmp_path / "a.jsonl").write_text("\n".join(lines), "utf-8")
    tokenizer = load_tokenizer("bytes")
    (tmp_path / "bytes.model").write_bytes(tokenizer.to_file_bytes())
    fitted = fit_data(
        load_recipe("pocket"),
        tmp_path / "a.jsonl",
        tmp_path / "run",
        tokenizer=tmp_path / "bytes.model",
    )
    data = open_dataset(fitted.recipe.data.corpus)
    assert data.folder == tmp_path / "run" / "data" and data.name == "a.jsonl"
    assert sum(1 for split in data.files for _ in data.texts(split)) == 3000
    assert fitted.recipe.model.vocab_size == 260
    assert any("tokenizer bytes" in line for line in fitted.said)
