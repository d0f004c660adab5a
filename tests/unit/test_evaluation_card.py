"""A new score of a run's artifact reaches the run's card; an invalid one gets a card that says so
first.
"""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from niblick.plan import make_plan
from niblick.recipe import load_recipe, recipe_to_toml
from niblick.scoring.card import make_card, write_card
from niblick.scoring.score import make_score
from niblick.scoring.score_text import score_text, update_card
from niblick.scoring.techniques import techniques
from niblick.scoring.wording import packing_text, setting_text

PROOF = {
    "tokens": 900,
    "cuts": 7,
    "compared": 1234,
    "alphabet": 260,
    "distributions": 48,
    "largest_deviation": 2e-7,
    "bytes": 30,
}


def make(mode="streaming", *, valid=True, data="d" * 64, details=None, **settings):
    values = {"context": 256, "stride": None, "precision": "fp32", "document": mode == "document"}
    return make_score(
        np.ones(10, np.float32),
        np.full(10, 3),
        [(0, 11)],
        seconds=1.0,
        mode=mode,
        settings={**values, "adaptation": None, "engine": "torch", **settings},
        data_sha256=data,
        artifact_sha256="a" * 64,
        valid=valid,
        details=details or {},
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
    values = {"evaluation": recipe.evaluation.model_copy(update={"mode": "streaming"})}
    model = recipe.model.model_copy(update={"context": 256})
    written = recipe.model_copy(update=values | {"model": model})
    (tmp_path / "recipe.toml").write_text(recipe_to_toml(written))
    return tmp_path


def card_of(run):
    return json.loads((run / "card.json").read_text())


def test_measuring_the_cards_own_score_again_brings_the_evidence_onto_it(run):
    update_card(run, make(details={"proof": PROOF}))
    assert card_of(run)["details"]["proof"] == PROOF and card_of(run)["scores"] == []
    assert "1,234 earlier scores unchanged to the bit" in (run / "card.md").read_text()


def test_another_mode_is_listed_once_and_its_newest_measurement_stays(run):
    update_card(run, make("document"))
    update_card(run, replace(make("document"), seconds=9.0))
    update_card(run, make("document", adaptation={"method": "lora"}))
    assert [entry["seconds"] for entry in card_of(run)["scores"]] == [9.0, 1.0]
    assert card_of(run)["mode"] == "streaming"


@pytest.mark.parametrize(
    "other",
    [
        {"context": 64},
        {"precision": "bf16"},
        {"data": "e" * 64},
        {"adaptation": {"method": "sgd", "lr": 0.1}},
    ],
)
def test_a_score_of_other_settings_or_data_is_listed_and_never_the_headline(run, other):
    before = card_of(run)
    update_card(run, replace(make(**other), bpb=9.0))
    assert {**card_of(run), "scores": []} == before
    assert [entry["bpb"] for entry in card_of(run)["scores"]] == [9.0]
    row = next(line for line in (run / "card.md").read_text().splitlines() if "9.0000" in line)
    assert {"data": "data None (eeeeeeeeeeee)", "adaptation": "adaptation sgd"}.get(
        next(iter(other)), " ".join(map(str, *other.items()))
    ) in row


def test_a_headline_measured_again_keeps_its_number(run):
    before = card_of(run)
    update_card(run, replace(make(), bpb=9.0, seconds=7.0))
    assert card_of(run) == before


def test_a_headline_that_an_older_version_took_from_other_settings_gives_way(run):
    card = card_of(run)
    for key in ("schema", "split", "settings", "tokenizer_sha256"):
        del card[key]
    card["details"] = {"split": "validation", "context": 256, "precision": "bf16"}
    (run / "card.json").write_text(json.dumps(card | {"packed_bpb": 9.0, "bpb": 9.0}))
    update_card(run, make("document"))
    assert card_of(run)["packed_bpb"] == 9.0
    update_card(run, make())
    assert card_of(run)["packed_bpb"] == make().bpb
    assert card_of(run)["settings"]["precision"] == "fp32" and len(card_of(run)["scores"]) == 1


def test_scores_that_are_put_on_a_card_at_the_same_time_are_all_listed(run):
    contexts = range(8, 24)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda context: update_card(run, make(context=context)), contexts))
    listed = [entry["settings"]["context"] for entry in card_of(run)["scores"]]
    assert sorted(listed) == list(contexts)


def test_a_card_written_again_for_the_same_artifact_keeps_the_other_scores(run):
    card = card_of(run)
    update_card(run, make("document"))
    write_card(card, run)
    assert [entry["mode"] for entry in card_of(run)["scores"]] == ["document"]
    write_card({**card, "artifact_sha256": "b" * 64}, run)
    assert card_of(run)["scores"] == []


def test_an_invalid_score_leaves_the_card_and_gets_one_that_says_so_in_its_first_line(run):
    before = (run / "card.md").read_text()
    (run / "scores").mkdir()
    score = make("leaky-ttt", valid=False, details={"reason": "trained on what it scored"})
    update_card(run, score)
    assert (run / "card.md").read_text() == before
    own = (run / "scores" / f"{score.name}-card.md").read_text()
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
            details={"proof": PROOF},
        )
    )
    for part in (
        "context 256, stride 64",
        "method sgd, lr 0.1\n",
        "48 distributions over 260 tokens sum to 1 within 2.0e-07",
    ):
        assert part in text


def test_packing_is_told_in_words_and_rounded_numbers():
    choice = {
        "aim": "budget",
        "budget": 985868,
        "limit": "none",
        "attempts": 3,
        "delta": 0.000184031727258116,
        "predicted_tax_nats": 0.008436,
        "bits_by_role": {"embedding": 3.025, "matrix": 3.237},
    }
    assert packing_text(choice) == (
        "985,868 bytes for the weights, filled in 3 tries; predicted loss 0.00844 nats per token;"
        " bits per weight: embedding 3.02, matrix 3.24"
    )
    assert "more bytes would not help" in packing_text({**choice, "limit": "largest"})
    met = packing_text({"aim": "tax", "target": 0.002, "attempts": 1, "measured": 0.00193})
    assert met == (
        "at most 0.002 bits per byte lost, met in 1 try; measured loss 0.00193 bits per byte"
    )
    assert packing_text({"level": 9}) == "level 9"


def test_a_setting_is_told_exactly_and_as_people_say_it():
    assert setting_text("decay", 0.9995) == "decay 0.9995"
    assert setting_text("newton_schulz_steps", 5) == "newton schulz steps 5"
    assert setting_text("nesterov", True) == "nesterov"
    assert setting_text("decay_after_update", False) == "no decay after update"
    assert setting_text("include", []) == "no include"
    assert setting_text("momentum", [0.85, 0.95]) == "momentum 0.85/0.95"
    assert setting_text("max_bytes", 1_000_000) == "max bytes 1,000,000"
