"""Scores of the engines are the lab's, in every mode that learns nothing, and can be proven."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines import native, plain, tensors_of
from niblick.errors import ScoreError
from niblick.evaluation.evaluate import score_tokens
from niblick.runtime import World
from niblick.scoring.data import text_target
from niblick.scoring.options import Adaptation, EvaluationOptions, OptionsError
from niblick.scoring.passes import engine_scorer, evaluate_on_engine
from niblick.text.tokenizer import load_tokenizer
from niblick.toolchain import ENGINE
from property.evaluators import BOS, CONTEXT, make_model, make_tokens

TOLERANCE = 1e-4
SIXTEEN_BITS = 1e-3  # one token, whose keys and values the native engine keeps in 16 bits
MODES = ("chunked", "sliding", "streaming", "document")
MODELS = {
    "shifts": make_model("shifts"),
    "mixed": make_model("mixed"),
    "masked": make_model("mixed", document_mask=True),
    "within": make_model("full", document_mask=True, document_attention="within"),
}
layouts = st.lists(st.integers(1, 40), min_size=1, max_size=6).filter(lambda x: sum(x) > 1)


def scores(engine, tokens, asked=None, **options):
    """Nats of the stream, or of the asked tokens."""
    chosen = EvaluationOptions(**options)
    scorer = engine_scorer(engine, chosen, context=chosen.context or CONTEXT, bos_id=BOS)
    found = scorer(tokens.astype(np.int64), tokens[None] if asked is None else asked)
    return found[0] if asked is None else found


@settings(max_examples=40, deadline=None)
@given(
    layouts,
    st.sampled_from(sorted(MODELS)),
    st.sampled_from(MODES),
    st.tuples(st.integers(1, 24), st.integers(1, 24)),
    st.tuples(st.integers(1, 4), st.integers(1, 50)),
)
def test_any_mode_layout_and_cut_scores_as_torch_does(lengths, model, mode, sizes, shape):
    model, tokens = MODELS[model], make_tokens(lengths)
    options = {"mode": mode, "context": sizes[0], "stride": min(sizes)}
    engine = plain(model, slots=shape[0], context=sizes[0])
    engine.columns = shape[1]
    right = score_tokens(model, tokens, EvaluationOptions(**options), World())
    np.testing.assert_allclose(scores(engine, tokens, **options), right, atol=TOLERANCE)


@pytest.mark.parametrize("mode", MODES)
def test_the_native_engine_scores_to_the_bit_the_same_side_by_side_and_alone(mode):
    library = ENGINE.obtain()
    if library is None:
        pytest.skip("needs a C compiler")
    tokens = make_tokens([20, 7, 150, 1, 12, 3])
    for model in MODELS.values():
        alone, many = native(model, library), native(model, library, slots=5, threads=2)
        found = scores(many, tokens, mode=mode, stride=4)
        assert np.array_equal(found, scores(alone, tokens, mode=mode, stride=4))
        options = EvaluationOptions(mode=mode, stride=4)
        right = score_tokens(model, tokens, options, World())
        np.testing.assert_allclose(found, right, atol=SIXTEEN_BITS)
        assert abs(found.mean() - right.mean()) < TOLERANCE / 4


@pytest.mark.parametrize("mode", MODES)
def test_a_score_of_an_engine_proves_itself_and_counts_the_texts_bytes(mode):
    model = MODELS["masked"]
    texts = ["naïve café 日本語 🐎", "", "The river is wide. " * 9]
    tokenizer = load_tokenizer("bytes")
    target = text_target("texts", texts, tokenizer, vocab_size=260, bos_id=BOS)
    score = evaluate_on_engine(
        model.plan,
        lambda slots: plain(model, slots=slots),
        target,
        EvaluationOptions(mode=mode, stride=4),
        prove=True,
    )
    assert score.bytes == sum(len(text.encode()) for text in texts)
    assert score.tokens == len(target.tokens) - 1 and len(score.documents.nats) == 3
    assert score.settings["engine"] == "numpy" and score.split == "text" and score.valid
    assert score.details["proof"]["compared"] > 50


def test_an_engine_that_peeks_is_caught():
    model = MODELS["mixed"]

    class Peeking(type(plain(model))):
        def advance(self, slots, tokens, wanted):
            super().advance(slots, np.roll(np.asarray(tokens), -1), wanted)

    engine = Peeking(model.plan, tensors_of(model))
    target = text_target("t", ["The river " * 9], load_tokenizer("bytes"), vocab_size=260, bos_id=1)
    with pytest.raises(ScoreError, match="not causal"):
        evaluate_on_engine(
            model.plan, lambda slots: engine, target, EvaluationOptions(mode="chunked"), prove=True
        )


def test_what_an_engine_cannot_do_is_refused():
    engine = plain(MODELS["mixed"])
    with pytest.raises(OptionsError, match="needs --engine torch"):
        scores(engine, make_tokens([9]), ttt=Adaptation(method="sgd"))
    with pytest.raises(OptionsError, match="stride 64 is longer than the context 16"):
        scores(engine, make_tokens([9]), mode="sliding")
    with pytest.raises(ScoreError, match="260 ids"):
        text_target("t", ["a"], load_tokenizer("bytes"), vocab_size=300, bos_id=BOS)
    with pytest.raises(ScoreError, match="holds no text"):
        text_target("t", [], load_tokenizer("bytes"), vocab_size=260, bos_id=BOS)
