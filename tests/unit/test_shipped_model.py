"""The shipped model is the shipped recipe's, whole, and works by its name."""

import json
from pathlib import Path

import pytest

import niblick
from commands import run
from niblick.errors import ArtifactError
from niblick.exchange.formats import export_model
from niblick.files import sha256_file
from niblick.recipe import load_recipe
from niblick.scoring.score import read_score

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "src" / "niblick" / "models"


@pytest.fixture(scope="module", params=["pocket", "pocket-ensemble"])
def name(request):
    return request.param


@pytest.fixture(scope="module")
def card(name):
    return json.loads((MODELS / f"{name}.card.json").read_text("utf-8"))


def test_its_recipe_is_the_shipped_one_but_for_seed_threads_and_how_long_it_trained(name, card):
    trained, shipped = load_recipe(MODELS / f"{name}.toml"), load_recipe(name)
    least = shipped.training.qat.min_passes
    qat = trained.training.qat.model_copy(update={"min_passes": least})
    length = {key: getattr(shipped.training, key) for key in ("duration", "max_passes", "threads")}
    training = trained.training.model_copy(update={**length, "qat": qat})
    assert trained.model_copy(update={"training": training, "seed": shipped.seed}) == shipped
    assert card["passes"] >= least
    assert niblick.load(name).recipe.model == shipped.model


def test_the_ensemble_is_two_of_it():
    both = ["model.members=2", "model.shared_tables=true", "training.duration=1200s"]
    both.append("training.muon.neuron_beta=null")  # it has not been trained with it
    both.append("training.qat.min_passes=0")  # its weights have fewer bits
    both += ["training.dropout.bigram=0.5", "training.dropout.value_embedding=0.5"]
    two, one = load_recipe("pocket-ensemble"), load_recipe("pocket", both)
    assert two == one.model_copy(update={"name": two.name, "description": two.description})


def test_file_card_and_score_are_of_one_model_under_the_cap(name, card):
    path, score = MODELS / f"{name}.nib", read_score(MODELS / f"{name}.score.json")
    assert sha256_file(path) == card["artifact_sha256"] == score.artifact_sha256
    assert path.stat().st_size == card["artifact_bytes"] <= load_recipe(name).artifact.max_bytes
    assert score.bpb == card["packed_bpb"] and score.valid and score.mode == "streaming"
    assert "CC BY-SA 4.0" in (MODELS / f"{name}.card.md").read_text("utf-8")


def test_its_name_is_enough_to_generate_and_score(name, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    asked = ("--prompt", "The river", "--max-tokens", "24", "--temperature", "0")
    assert run("generate", name, *asked) == 0
    out, err = capfd.readouterr()
    assert len(out.split()) > 3 and f"shipped model '{name}'" in err
    assert out == niblick.load(name).generate("The river", max_tokens=24, temperature=0) + "\n"
    (tmp_path / "a.txt").write_text("The river flows through the valley into the sea. " * 5)
    before = sorted(MODELS.iterdir())
    assert run("eval", name, "--data", tmp_path / "a.txt") == 0
    assert sorted(MODELS.iterdir()) == before  # its scores go where the user is
    assert list(tmp_path.glob(f"{name}.*.score.json"))


def test_its_card_goes_where_the_model_goes(name, card, tmp_path):
    export_model(name, "hf", tmp_path / "hf")
    assert f"{card['packed_bpb']:.4f}" in (tmp_path / "hf" / "README.md").read_text("utf-8")


def test_a_name_that_is_neither_a_path_nor_shipped_is_told_what_there_is():
    with pytest.raises(ArtifactError, match="shipped model: pocket"):
        niblick.load("poket")
