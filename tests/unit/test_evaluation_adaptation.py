"""Test-time training is score-first by construction, resets where it says, and earns its keep on
repetitive text.
"""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from niblick.errors import ScoreError
from niblick.evaluation import (
    Adaptation,
    EvaluationOptions,
    LeakyTraining,
    adaptation,
    adapters,
    evaluate,
)
from niblick.evaluation.evaluate import make_scorer, score_tokens
from niblick.evaluation.leaky import rate
from niblick.evaluation.tally import Scored, Tally
from niblick.runtime import World
from niblick.scoring.options import OptionsError, parse_settings
from niblick.scoring.proof import ProofError, prove_causal
from property.evaluators import BOS, make_dataset, make_model, make_tokens
from unit.evaluation_cases import ADAPTATIONS, WEIGHTS

LENGTHS = (24, 9, 31, 1, 40)


def score(tokens, ttt, model=None, **options):
    options = EvaluationOptions(mode=ttt.mode, ttt=ttt, **options)
    return score_tokens(model or make_model(), tokens, options, World())


def plain(tokens, mode, **options):
    return score_tokens(make_model(), tokens, EvaluationOptions(mode=mode, **options), World())


@pytest.mark.parametrize("name", ADAPTATIONS)
def test_every_adaptation_learns_something_and_proves_causal(tmp_path, name):
    ttt, dataset, model = ADAPTATIONS[name], make_dataset(tmp_path, LENGTHS), make_model()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    options = EvaluationOptions(mode=ttt.mode, ttt=ttt, batch_tokens=64)
    found = evaluate(model, dataset, split="validation", options=options, prove=True)
    assert found.valid and found.details["proof"]["cuts"] >= 4
    assert found.settings["adaptation"]["method"] == ttt.method
    assert (
        found.nats_per_token
        != plain(dataset.tokens("validation"), ttt.mode, batch_tokens=64).mean()
    )
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_weights_that_learn_at_rate_zero_score_as_streaming_does_to_the_bit():
    tokens = make_tokens(LENGTHS)
    still = score(tokens, Adaptation(method="sgd", lr=0.0, **WEIGHTS), batch_tokens=32)
    np.testing.assert_array_equal(still, plain(tokens, "streaming", batch_tokens=32))


def test_the_first_chunk_is_scored_by_untouched_weights_and_later_ones_are_not():
    tokens = make_tokens(LENGTHS)
    found = score(tokens, ADAPTATIONS["sgd"], batch_tokens=32)
    still = plain(tokens, "streaming", batch_tokens=32)
    np.testing.assert_array_equal(found[:32], still[:32])
    assert (found[32:64] != still[32:64]).any()


def test_every_linear_map_can_carry_an_adapter():
    model, tokens = make_model(), torch.from_numpy(make_tokens(LENGTHS).astype(np.int64))[None]
    targets = {"fc", "proj", "W_r", "W_k", "W_v", "c_q", "c_k", "c_v"}
    linears = adapters.chosen_linears(model, sorted(targets))
    assert {name.rpartition(".")[2] for name in linears} == targets
    with torch.no_grad():
        for module in linears.values():  # no map may be silenced by a zero after it
            module.weight.normal_(std=0.3)
        still = model.logits(tokens)
        for name, module in linears.items():
            module.extra = lambda x: x.new_tensor(0.5)
            assert not torch.equal(model.logits(tokens), still), name
            module.extra = None


def test_adapters_that_learn_at_rate_zero_score_as_document_mode_does():
    tokens = make_tokens(LENGTHS)
    still = score(tokens, Adaptation(method="lora", lr=0.0, chunk_tokens=8))
    np.testing.assert_allclose(still, plain(tokens, "document"), atol=2e-5)


def test_adapters_start_anew_at_each_bos_and_do_not_see_their_neighbours():
    tokens, ttt = make_tokens(LENGTHS), ADAPTATIONS["lora"]
    found = score(tokens, ttt)
    starts = [*np.flatnonzero(tokens == BOS).tolist(), len(tokens) - 1]
    for start, end in itertools.pairwise(starts):
        alone = score(tokens[start : end + 1], ttt)
        np.testing.assert_allclose(found[start:end], alone, atol=2e-4)


def test_only_a_tally_hands_out_tokens_to_learn_and_only_scored_ones():
    tokens = torch.arange(10)
    tally = Tally(1, 9)
    tally.enter(0, torch.ones(1, 4))
    assert tally.scored(tokens, [(0, 4)]).targets.tolist() == [[1, 2, 3, 4]]
    with pytest.raises(ScoreError, match="predictions 0 to 4 are not all scored"):
        tally.scored(tokens, [(0, 5)])
    with pytest.raises(ScoreError, match="only tokens that are scored"):
        Scored(tokens[None], tokens[None], torch.ones(1, 10), 10, object())


def test_an_update_slice_one_token_too_long_is_refused(monkeypatch):
    honest = adaptation.row_spans
    monkeypatch.setattr(
        adaptation, "row_spans", lambda job, settings, a, b: honest(job, settings, a, b + 1)
    )
    with pytest.raises(ScoreError, match="not all scored"):
        score(make_tokens(LENGTHS), ADAPTATIONS["sgd"])


def test_a_learner_that_gets_past_the_tally_is_caught_by_the_proof(monkeypatch):
    def careless(self, tokens, spans):
        (start, end), *_ = spans
        inputs, targets = tokens[None, start : end + 2], tokens[None, start + 1 : end + 3]
        size = targets.shape[1]
        return type(
            "Stolen",
            (),
            {
                "inputs": inputs[:, :size],
                "targets": targets,
                "mask": torch.ones(1, size),
                "count": size,
            },
        )()

    monkeypatch.setattr(Tally, "scored", careless)
    ttt = replace(ADAPTATIONS["sgd"], sequence_length=64)
    scorer = make_scorer(make_model(), EvaluationOptions(mode="streaming", ttt=ttt))
    with pytest.raises(ProofError, match="not causal"):
        prove_causal(
            scorer, make_tokens([100]).astype(np.int64), alphabet=260, cuts=[32], keep=None, seed=0
        )


@pytest.mark.parametrize("name", ["sgd", "adamw", "rms", "sgd in phases"])
def test_learning_from_a_repeated_text_lowers_its_score(name):
    tokens = np.tile(make_tokens([40]), 12)
    still, found = plain(tokens, "streaming"), score(tokens, ADAPTATIONS[name])
    assert found[200:].mean() < still[200:].mean() - 0.2


def test_rms_divides_by_the_root_mean_square_of_all_steps():
    weight, gradients = torch.nn.Parameter(torch.zeros(3)), torch.tensor([[3.0, 0, 1], [1, 4, 0]])
    optimizer = adaptation.Rms([weight], lr=0.5)
    wanted = torch.zeros(3)
    for n, gradient in enumerate(gradients, start=1):
        root = gradients[:n].square().mean(dim=0).sqrt()
        wanted -= 0.5 * gradient / (root + 0.1 * root.mean())
        weight.grad = gradient
        optimizer.step()
    torch.testing.assert_close(weight.detach(), wanted)


def test_adapters_lower_the_score_of_a_long_repetitive_document():
    tokens = np.concatenate([[BOS], np.tile(make_tokens([21])[1:], 15)])
    still, found = plain(tokens, "document"), score(tokens, ADAPTATIONS["lora"])
    assert found[150:].mean() < still[150:].mean() - 0.2


def test_once_the_time_is_over_the_rest_is_scored_without_learning(tmp_path):
    dataset = make_dataset(tmp_path, LENGTHS)
    ttt = replace(ADAPTATIONS["sgd"], seconds=0.0)
    found = evaluate(
        make_model(),
        dataset,
        split="validation",
        options=EvaluationOptions(ttt=ttt, batch_tokens=32),
    )
    assert found.details["learnt"]["stopped_by_time"] and found.details["learnt"]["steps"] == 0
    still = plain(dataset.tokens("validation"), "streaming", batch_tokens=32)
    assert found.nats_per_token == np.sum(still, dtype=np.float64) / len(still)


def test_frozen_parameters_stay_and_the_rest_trains():
    model = make_model()
    kept = adaptation.trainable(model, ("blocks.0", "tok_emb"))
    names = {
        name for name, weight in model.named_parameters() if any(weight is other for other in kept)
    }
    assert names and not any(name.startswith(("blocks.0.", "tok_emb.")) for name in names)
    with pytest.raises(
        OptionsError, match=r"freeze 'blocks.9' names no parameter; they begin: .*blocks"
    ):
        adaptation.trainable(model, ("blocks.9",))
    with pytest.raises(OptionsError, match="leaves nothing to train"):
        adaptation.trainable(model, tuple(name for name, _ in model.named_parameters()))


def test_unknown_adapter_targets_are_refused():
    with pytest.raises(OptionsError, match="name no linear map"):
        adapters.chosen_linears(make_model(), ("nothing",))


def test_phases_hold_whole_documents_in_order():
    windows = adapters.document_windows(make_tokens(LENGTHS), BOS)
    groups = adapters.phase_groups(windows, 3)
    assert [w for group in groups for w in group] == windows and 1 < len(groups) <= 3


def test_training_before_scoring_lowers_the_score_is_never_valid_and_does_not_prove(tmp_path):
    dataset = make_dataset(tmp_path, LENGTHS)
    options = EvaluationOptions(
        mode="leaky-ttt", stride=4, leaky=LeakyTraining(lr=0.01, epochs=6, batch_rows=4)
    )
    found = evaluate(make_model(), dataset, split="validation", options=options)
    honest = evaluate(
        make_model(), dataset, split="validation", options=replace(options, mode="sliding")
    )
    assert found.bpb < honest.bpb and not found.valid and "C3" in found.details["reason"]
    with pytest.raises(ProofError, match="not causal"):
        evaluate(make_model(), dataset, split="validation", options=options, prove=True)


def test_the_leaky_rate_warms_up_from_a_tenth_and_ends_at_its_floor():
    settings = LeakyTraining(epochs=20)
    rates = [rate(step, 50, settings) for step in range(1000)]
    assert rates[0] == pytest.approx(5e-5) and rates[50] == pytest.approx(5e-4)
    assert min(rates) == pytest.approx(2e-5, rel=0.01) and rates[-1] < 2.1e-5


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"method": "slot"}, "'slot' is unknown; accepted: sgd, adamw, rms, lora"),
        ({"method": "sgd", "epochs": 0}, "epochs 0"),
        ({"method": "sgd", "lr": -1.0}, "lr -1.0 must be 0 or more"),
        ({"method": "sgd", "phases": 2, "chunk_tokens": 8}, "not both"),
    ],
)
def test_impossible_adaptations_are_refused(values, message):
    with pytest.raises(OptionsError, match=message):
        Adaptation(**values)


def test_an_adaptation_goes_with_its_own_mode_only():
    with pytest.raises(OptionsError, match="lora goes with mode document, not sliding"):
        EvaluationOptions(mode="sliding", ttt=Adaptation(method="lora"))


def test_settings_are_read_in_the_types_of_their_fields():
    found = parse_settings(
        Adaptation, ["lr=1e-3", "epochs=3", "cosine=false", "freeze=tok_emb,blocks.0", "seconds=60"]
    )
    assert found == {
        "lr": 1e-3,
        "epochs": 3,
        "cosine": False,
        "freeze": ("tok_emb", "blocks.0"),
        "seconds": 60.0,
    }
    for bad, message in (
        ("lr", "not key=value"),
        ("foo=1", "not key=value"),
        ("epochs=x", "'x' is not a number"),
        ("cosine=1", "true and false"),
    ):
        with pytest.raises(OptionsError, match=message):
            parse_settings(Adaptation, [bad])
