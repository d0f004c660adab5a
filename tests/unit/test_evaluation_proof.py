"""`--prove` passes honest models in every mode and catches each way of cheating."""

import numpy as np
import pytest
import torch

from niblick.evaluation import EvaluationOptions, evaluate
from niblick.evaluation.evaluate import make_scorer
from niblick.model import LanguageModel
from niblick.scoring.proof import ProofError, prove, prove_normalised
from property.evaluators import BOS, CONTEXT, VOCAB, make_dataset, make_model, make_tokens

LENGTHS = (30, 9, 41, 1, 25, 60)


class FutureMean(LanguageModel):
    """Adds a little of the mean over all positions, later ones included."""

    def hidden(self, tokens, state=None, **kwargs):
        x, after = super().hidden(tokens, state, **kwargs)
        return x + 1e-3 * x.mean(dim=1, keepdim=True), after


class PeeksOneAhead(LanguageModel):
    """Each position sees the hidden state of the next one."""

    def hidden(self, tokens, state=None, **kwargs):
        x, after = super().hidden(tokens, state, **kwargs)
        return torch.cat([x[:, :-1] + 1e-3 * x[:, 1:], x[:, -1:]], dim=1), after


class BatchStatistics(LanguageModel):
    """Normalises over the batch and its positions, as a batch norm left in training mode would."""

    def hidden(self, tokens, state=None, **kwargs):
        x, after = super().hidden(tokens, state, **kwargs)
        return x / x.std(), after


@pytest.mark.parametrize("mode", ["chunked", "sliding", "streaming", "document"])
def test_an_honest_model_passes_in_every_mode_with_its_evidence_in_the_score(tmp_path, mode):
    options = EvaluationOptions(mode=mode, stride=4, batch_tokens=48)
    score = evaluate(
        make_model(),
        make_dataset(tmp_path, LENGTHS),
        split="validation",
        options=options,
        prove=True,
    )
    proof = score.details["proof"]
    assert proof["cuts"] >= 4 and proof["compared"] > 20 and proof["alphabet"] == VOCAB
    assert proof["distributions"] > 5 and proof["largest_deviation"] < 1e-5
    assert proof["bytes"] == score.bytes


@pytest.mark.parametrize("kind", [FutureMean, PeeksOneAhead, BatchStatistics])
@pytest.mark.parametrize("mode", ["chunked", "sliding", "streaming", "document"])
def test_a_model_that_sees_the_future_is_caught_in_every_mode(tmp_path, mode, kind):
    options = EvaluationOptions(mode=mode, stride=4, batch_tokens=48)
    with pytest.raises(ProofError, match="not causal"):
        evaluate(
            make_model(kind=kind),
            make_dataset(tmp_path, LENGTHS),
            split="validation",
            options=options,
            prove=True,
        )


def scorer(model):
    return make_scorer(model, EvaluationOptions(mode="streaming"))


def test_a_scorer_that_normalises_over_a_subset_is_caught():
    model = make_model()

    def over_subset(tokens, asked):
        with torch.no_grad():
            logits = model.logits(torch.from_numpy(tokens)[None, :-1], context=CONTEXT)[0]
        subset = logits[:, : VOCAB // 2].logsumexp(-1)
        return torch.stack(
            [subset - logits.gather(1, row[1:, None])[:, 0] for row in torch.from_numpy(asked)]
        ).numpy()

    with pytest.raises(ProofError, match=f"probabilities of all {VOCAB} tokens add up to"):
        prove(over_subset, make_tokens([30]), alphabet=VOCAB, cuts=[5, 17])


def test_a_bonus_that_depends_on_the_token_that_is_scored_is_caught():
    honest = scorer(make_model())

    def hinted(tokens, asked):
        return honest(tokens, asked) - np.float32(0.5) * (asked[:, 1:] == tokens[:-1])

    with pytest.raises(ProofError, match="not normalised"):
        prove_normalised(hinted, make_tokens([12]).astype(np.int64), VOCAB)


def test_a_count_table_read_with_the_scored_token_is_caught():
    honest = scorer(make_model())

    def boosted(tokens, asked):
        nll = honest(tokens, asked)
        seen = {(tokens[i], tokens[i + 1]) for i in range(len(tokens) - 1)}
        hits = np.array(
            [[(tokens[i], row[i + 1]) in seen for i in range(len(tokens) - 1)] for row in asked]
        )
        return np.where(hits, -np.log(0.5 * np.exp(-nll) + 0.5), nll).astype(np.float32)

    with pytest.raises(ProofError, match=r"not (causal|normalised)"):
        prove(boosted, make_tokens([30]), alphabet=VOCAB, cuts=[5, 17])


def test_a_scorer_that_looks_at_the_last_token_alone_is_caught():
    honest = scorer(make_model())

    def cheat(tokens, asked):
        return honest(tokens, asked) * (np.float32(0.999) if tokens[-1] % 2 else np.float32(1))

    with pytest.raises(ProofError, match="not causal"):
        prove(cheat, make_tokens([60]), alphabet=VOCAB, cuts=[5, 17, 30, 40, 50])


def test_a_scorer_that_knows_the_length_of_the_stream_is_caught():
    honest = scorer(make_model())
    with pytest.raises(ProofError, match="cutting the stream off"):
        prove(
            lambda t, a: honest(t, a) + np.float32(0.01 * len(t)),
            make_tokens([60]),
            alphabet=VOCAB,
            cuts=[5, 17],
        )


def test_scores_that_are_not_entries_of_their_distributions_are_caught():
    honest = scorer(make_model())

    def better_when_alone(tokens, asked):
        return honest(tokens, asked) - np.float32(0.01) * (len(asked) == 1)

    with pytest.raises(ProofError, match="not the entries of its distributions"):
        prove(better_when_alone, make_tokens([60]), alphabet=VOCAB, cuts=[5])


def test_a_document_proof_leaves_the_starts_of_documents_where_they_are():
    seen = []

    def record(tokens, asked):
        seen.append(np.flatnonzero(tokens == BOS).tolist())
        return np.full((len(asked), len(tokens) - 1), np.log(VOCAB), dtype=np.float32)

    tokens = make_tokens([20, 20, 20])
    prove(record, tokens, alphabet=VOCAB, cuts=[5, 25], keep=BOS, length_free=False)
    assert seen[:3] == [[0, 20, 40]] * 3


def test_a_stream_too_short_to_cut_is_refused():
    with pytest.raises(ProofError, match="2 tokens is too short"):
        prove(scorer(make_model()), make_tokens([2]), alphabet=VOCAB, cuts=[1])
