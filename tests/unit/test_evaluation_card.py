"""A new score of a run's artifact reaches the run's card; an invalid one gets a card that says so
first.
"""

import json
from dataclasses import replace

import numpy as np
import pytest

from niblick.plan import make_plan
from niblick.recipe import load_recipe
from niblick.scoring.card import make_card, write_card
from niblick.scoring.score import make_score
from niblick.scoring.score_text import score_text, update_card
from niblick.scoring.techniques import techniques

PROOF = {
    "tokens": 900,
    "cuts": 7,
    "compared": 1234,
    "alphabet": 260,
    "distributions": 48,
    "largest_deviation": 2e-7,
    "bytes": 30,
}


def make(mode="streaming", *, valid=True, **details):
    values = {"split": "validation", "context": 256, "adaptation": None, **details}
    return make_score(
        np.ones(10, np.float32),
        np.full(10, 3),
        [(0, 11)],
        seconds=1.0,
        mode=mode,
        data_sha256="d" * 64,
        artifact_sha256="a" * 64,
        valid=valid,
        details=values,
    )


@pytest.fixture
def run(tmp_path):
    recipe, score = load_recipe("token-shift-small"), make()
    card = make_card(
        recipe,
        make_plan(recipe.model),
        floating=score,
        packed=score,
        baselines={},
        environment={},
        artifact={
            "bytes": 1000,
            "choice": {},
            "ledger": {
                "total": 1000,
                "parameters": 9,
                "bits_per_parameter": 8.0,
                "parts": {"payload": 1000},
                "tensors": {},
            },
        },
        training={"seconds": 1.0, "tokens": 2, "steps": 3, "passes": None, "qat": None},
        data={"corpus": "x", "attribution": "", "tokenizer": "t", "lossless": True},
    )
    write_card(card, tmp_path)
    return tmp_path


def card_of(run):
    return json.loads((run / "card.json").read_text())


def test_measuring_the_cards_own_score_again_brings_the_evidence_onto_it(run):
    update_card(run, make(proof=PROOF))
    assert card_of(run)["details"]["proof"] == PROOF and card_of(run)["scores"] == []
    assert "1,234 earlier scores unchanged to the bit" in (run / "card.md").read_text()


def test_another_mode_is_listed_once_and_its_newest_measurement_stays(run):
    update_card(run, make("document"))
    update_card(run, replace(make("document"), seconds=9.0))
    update_card(run, make("document", adaptation={"method": "lora"}))
    assert [entry["seconds"] for entry in card_of(run)["scores"]] == [9.0, 1.0]
    assert card_of(run)["mode"] == "streaming"


def test_an_invalid_score_leaves_the_card_and_gets_one_that_says_so_in_its_first_line(run):
    before = (run / "card.md").read_text()
    (run / "scores").mkdir()
    update_card(run, make("leaky-ttt", valid=False, reason="trained on what it scored"))
    assert (run / "card.md").read_text() == before
    own = (run / "scores" / "validation-leaky-ttt-card.md").read_text()
    assert own.splitlines()[0] == "**NOT A VALID SCORE**: trained on what it scored"


def test_a_score_of_another_file_does_not_touch_the_card(run):
    before = card_of(run)
    update_card(run, replace(make("document"), artifact_sha256="b" * 64))
    update_card(run, replace(make("document"), artifact_sha256=None))
    assert card_of(run) == before


def test_a_card_names_what_an_exact_reproduction_of_the_published_models_needs():
    overrides = ['model.stack.0.layers=["window:128","window:1024"]', "model.sidecar.layers=[1]"]
    overrides += ["model.bigram.width=512", "model.bigram.projection=false"]
    recipe = load_recipe("sidecar", overrides)
    found = techniques(recipe, make_plan(recipe.model))["architecture"]
    named = {entry["name"]: entry for entry in found}
    assert named["window layers"]["windows"] == [128, 1024]
    assert named["rotary base rescaling"]["train_length"] == 1024
    assert named["U-Net skips"]["pop"] == "early"
    assert named["hashed bigram embedding"]["projection"] is False


def test_a_score_in_words_names_mode_data_adaptation_and_proof():
    text = score_text(
        make(
            "sliding",
            stride=64,
            adaptation={"method": "sgd", "lr": 0.1, "seconds": None},
            proof=PROOF,
        )
    )
    for part in (
        "context 256, stride 64",
        "method sgd, lr 0.1\n",
        "48 distributions over 260 tokens sum to 1 within 2.0e-07",
    ):
        assert part in text
