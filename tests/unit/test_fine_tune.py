"""Runs that start from a model's weights."""

from __future__ import annotations

import os
import random
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

import niblick
from niblick.artifact.checkpoint import find_weights, read_checkpoint, save_checkpoint
from niblick.artifact.load import open_file, open_tokenizer
from niblick.compression.packing import pack
from niblick.data.corpus import own_corpus
from niblick.data.dataset import Dataset
from niblick.errors import ArtifactError, NiblickError, TrainingError
from niblick.exchange.submission import export_submission
from niblick.files import read_json, sha256_file
from niblick.model import new_model
from niblick.recipe import Recipe, changed, load_recipe, recipe_to_toml
from niblick.report.own_text import fit_text
from niblick.report.start import start
from niblick.runtime import World
from niblick.scoring.card import card_markdown
from niblick.training import Progress, train
from niblick.training.run_folder import RunFolder
from training_runs import SENTENCE, digest, run, tiny_dataset, tiny_recipe, with_section

STILL = {
    "muon": {"lr": 0.0, "weight_decay": 0.0},
    "adam": {"embedding_lr": 0.0, "scalar_lr": 0.0, "weight_decay": 0.0},
    "averaging": {"kind": "none"},
    "qat": {"enabled": False},
    "duration": "1 steps",
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny_dataset(tmp_path_factory.mktemp("data") / "shards")


@pytest.fixture(scope="module")
def source(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with its checkpoints, and its weights packed beside it."""
    out = tmp_path_factory.mktemp("source") / "run"
    recipe = tiny_recipe()
    result = run(recipe, dataset, out)
    pack(result.tensors, recipe, dataset.tokenizer, out.parent / "model.nib", max_bytes=10**6)
    return out


def _from(model: Path | str, **training: object) -> Recipe:
    return tiny_recipe(init_from=str(model), **training)


@pytest.mark.parametrize("kind", ["run", "model.nib"])
def test_a_run_begins_with_the_weights_of_the_file(
    dataset: Dataset, source: Path, tmp_path: Path, kind: str
) -> None:
    place = source.parent / kind
    found = run(_from(place, **STILL), dataset, tmp_path / "run").tensors
    for name, tensor in open_file(place).tensors.items():
        given = tensor if isinstance(tensor, np.ndarray) else tensor.dequantize()
        assert np.array_equal(found[name].numpy(), given)
    noted = RunFolder(tmp_path / "run").environment()["init_from"]
    assert noted == {"model": str(place), "sha256": open_file(place).sha256}


def test_training_goes_on_from_there(dataset: Dataset, source: Path, tmp_path: Path) -> None:
    first = run(tiny_recipe(), dataset, tmp_path / "first").validations[-1][1]
    again = run(_from(source), dataset, tmp_path / "again").validations
    assert again[0][1] < first + 0.5 and again[-1][1] < first


def test_a_stopped_run_resumes_to_the_bit_though_the_model_is_gone(
    dataset: Dataset, source: Path, tmp_path: Path
) -> None:
    shutil.copytree(source, tmp_path / "model")
    recipe = _from(tmp_path / "model")
    whole = digest(run(recipe, dataset, tmp_path / "whole"))

    def stop(progress: Progress) -> None:
        if progress.step == 6 and progress.validation_bpb is None:
            os.kill(os.getpid(), signal.SIGTERM)

    part = train(recipe, dataset, tmp_path / "part", world=World(), on_progress=stop)
    assert part.interrupted
    shutil.rmtree(tmp_path / "model")
    assert digest(run(recipe, dataset, tmp_path / "part", resume=True)) == whole


def test_heads_that_only_training_has_begin_anew(
    dataset: Dataset, source: Path, tmp_path: Path
) -> None:
    recipe = _from(source, **STILL)
    heads = recipe.model.mtp.model_copy(update={"heads": 1})
    recipe = with_section(recipe, "model", mtp=heads)
    found = run(recipe, dataset, tmp_path / "run").tensors
    assert found.keys() == open_file(source).tensors.keys()


def test_another_shape_or_tokenizer_is_refused(
    dataset: Dataset, source: Path, tmp_path: Path
) -> None:
    wide = with_section(_from(source), "model", dim=32)
    with pytest.raises(TrainingError, match=r"another shape .* differs; `niblick train --from"):
        run(wide, dataset, tmp_path / "wide")
    assert not (tmp_path / "wide").exists()
    with pytest.raises(ArtifactError, match="no model at"):
        run(_from(tmp_path / "none.nib"), dataset, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_the_shape_is_the_models_and_a_recipe_file_decides_the_rest(
    source: Path, tmp_path: Path
) -> None:
    own = open_file(source).recipe
    begun = start(None, ["training.adam.scalar_lr=0.7"], init_from=source, duration="9 steps")
    assert begun.recipe.model == own.model
    assert begun.tokenizer == begun.recipe.training.init_from == str(source.absolute())
    assert {"training.duration", "training.adam.scalar_lr", "model.dim"} <= begun.given
    assert "training.muon.lr" not in begun.given
    file = tmp_path / "mine.toml"
    file.write_text(recipe_to_toml(load_recipe("pocket", ["training.muon.lr=0.5"])))
    with_file = start(file, init_from=source)
    assert (with_file.recipe.training.muon.lr, with_file.recipe.model) == (0.5, own.model)
    assert "training.muon.lr" in with_file.given
    assert start("pocket", init_from="pocket").recipe.training.init_from == "pocket"


def test_a_chain_of_runs_takes_a_shipped_recipes_training_anew(tmp_path: Path) -> None:
    fitted = load_recipe(
        "pocket", ["training.muon.lr=0.001", "training.duration='9 steps'", "model.dim=64"]
    )
    model = new_model(fitted.model, seed=0)
    weights = {name: p.detach() for name, p in model.named_parameters()}
    file = tmp_path / "pocket-1" / "checkpoints" / "final.safetensors"
    file.parent.mkdir(parents=True)
    save_checkpoint(file, tensors=weights, recipe=fitted, tokenizer=None, meta={})
    begun = start(None, init_from=file, tokenizer="bytes")
    assert begun.recipe.training.muon == load_recipe("pocket").training.muon
    assert begun.recipe.training.duration == load_recipe("pocket").training.duration
    assert (begun.recipe.model, begun.tokenizer) == (fitted.model, "bytes")


def test_rates_that_were_chosen_once_stay(source: Path, tmp_path: Path) -> None:
    assert "training.muon.lr" not in start(None, init_from=source).given
    shutil.copytree(source, tmp_path / "second")
    again = changed(open_file(source).recipe, {"training.init_from": "gone"})
    checkpoint = read_checkpoint(find_weights(source / "checkpoints"))
    target = tmp_path / "second" / "checkpoints" / "final.safetensors"
    save_checkpoint(
        target, tensors=checkpoint.tensors, recipe=again, tokenizer=checkpoint.tokenizer, meta={}
    )
    assert "training.muon.lr" in start(None, init_from=target).given


def test_a_folder_of_seeds_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "seed-0").mkdir()
    (tmp_path / "seed-0" / "recipe.toml").write_text("")
    with pytest.raises(ArtifactError, match=r"a folder of seeds; give one of them, as .*seed-0"):
        start(None, init_from=tmp_path)


def test_little_text_is_learnt_at_gentler_rates_unless_they_are_given(tmp_path: Path) -> None:
    words = [f"{a}{b}{c}" for a in "bdfgkm" for b in "aeiou" for c in "lnrst"]
    for size, share in ((60_000, 0.25), (400_000, 0.5)):
        draw = random.Random(size)
        texts = [" ".join(draw.choices(words, k=600)) for _ in range(size // 2400)]
        begun = start(None, ["training.adam.scalar_lr=0.7"], init_from="pocket")
        fitted = fit_text(
            begun.recipe,
            own_corpus("mine", texts),
            tmp_path / str(size),
            given=begun.given,
            tokenizer=open_tokenizer("pocket"),
        )
        own, found = begun.recipe, fitted.recipe
        assert found.model.model_copy(update={"context": own.model.context}) == own.model
        assert found.training.muon.lr == share * own.training.muon.lr
        assert found.training.adam.embedding_lr == share * own.training.adam.embedding_lr
        assert found.training.adam.scalar_lr == 0.7
        assert any(line.startswith(f"learning rates {share:g}") for line in fitted.said)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"settings": ["model.dim=32"]}, r"has its shape: no --set model\.dim"),
        ({"settings": ["model.tied=false"]}, r"has its shape: no --set model\.tied"),
        ({"settings": ["data.tokenizer=bytes"]}, "brings its tokenizer"),
        ({"settings": ["training.init_from=pocket"]}, "give one of them"),
        ({"init_from": ""}, "no model is named"),
        ({"tokenizer": "bytes"}, "brings its tokenizer"),
        ({"init_from": "pocke"}, "no model at 'pocke'.*pocket"),
        ({"init_from": None}, "give a RECIPE .* --from MODEL"),
    ],
)
def test_what_cannot_be_is_said(source: Path, given: dict[str, object], said: str) -> None:
    with pytest.raises(NiblickError, match=said):
        start(None, **{"init_from": source, **given})  # type: ignore[arg-type]


def test_a_text_is_read_with_the_models_tokenizer_and_the_card_names_the_model(
    source: Path, tmp_path: Path
) -> None:
    text = tmp_path / "text"
    for number, split in enumerate(["train"] * 20 + ["validation"] * 20):
        (text / split).mkdir(parents=True, exist_ok=True)
        (text / split / f"{number}.txt").write_text(SENTENCE.format(number) * (6 + number % 3))
    model = source.parent / "model.nib"
    found = niblick.train(
        init_from=model, data=text, out=tmp_path / "run", duration="3 steps", device="cpu"
    )
    card = read_json(found.folder / "card.json")
    assert card["init_from"] == {"model": "model.nib", "sha256": sha256_file(model)}
    assert open_file(found.artifact).recipe.training.init_from == "model.nib"  # no path
    assert "training.muon.lr" in start(None, init_from=found.folder).given  # chosen once
    again = niblick.train(
        init_from=found, data=text, out=tmp_path / "again", duration="1 steps", device="cpu"
    )
    assert again.card["init_from"]["model"] == "run"
    assert "trained from model.nib on text" in card_markdown(card)
    read = open_tokenizer(str(found.artifact))
    assert read.to_bytes() == open_tokenizer(str(model)).to_bytes()
    with pytest.raises(NiblickError, match="started from another model's weights"):
        export_submission(found.folder, tmp_path / "submission", author="a", name=None, force=False)
