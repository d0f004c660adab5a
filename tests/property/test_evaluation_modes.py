"""The modes equal their plain definitions, whatever the document layout and the sizes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from niblick.evaluation.evaluate import score_tokens
from niblick.runtime import World
from niblick.scoring.options import EvaluationOptions, OptionsError
from niblick.scoring.windows import document_windows, sliding_windows
from property.evaluators import BOS, CONTEXT, STACKS, make_model, make_tokens, plain_nll

TOLERANCE = 2e-5
MODELS = {stack: make_model(stack) for stack in STACKS}
layouts = st.lists(st.integers(1, 40), min_size=1, max_size=6).filter(lambda x: sum(x) > 1)
stacks = st.sampled_from(sorted(STACKS))


def score(model, tokens, **options):
    return score_tokens(model, tokens, EvaluationOptions(**options), World())


@settings(max_examples=14, deadline=None)
@given(layouts, stacks, st.integers(1, 50))
def test_streaming_equals_one_pass_with_bounded_context_for_any_piece(lengths, stack, piece):
    tokens = make_tokens(lengths)
    found = score(MODELS[stack], tokens, mode="streaming", batch_tokens=piece)
    np.testing.assert_allclose(found, plain_nll(MODELS[stack], tokens), atol=TOLERANCE)


@settings(max_examples=14, deadline=None)
@given(layouts, stacks, st.integers(1, CONTEXT), st.integers(1, CONTEXT), st.integers(1, 100))
def test_sliding_equals_a_loop_over_its_windows(lengths, stack, context, stride, batch):
    tokens, stride = make_tokens(lengths), min(stride, context)
    found = score(
        MODELS[stack], tokens, mode="sliding", context=context, stride=stride, batch_tokens=batch
    )
    expected = np.full(len(tokens) - 1, np.nan)
    for window in sliding_windows(len(tokens) - 1, context, stride):
        whole = plain_nll(MODELS[stack], tokens[window.start : window.end + 1], context)
        expected[window.first : window.end] = whole[window.first - window.start :]
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)


@settings(max_examples=10, deadline=None)
@given(layouts, stacks, st.integers(1, CONTEXT))
def test_chunked_is_sliding_with_a_stride_of_the_context(lengths, stack, context):
    tokens = make_tokens(lengths)
    chunked = score(MODELS[stack], tokens, mode="chunked", context=context)
    sliding = score(MODELS[stack], tokens, mode="sliding", context=context, stride=context)
    np.testing.assert_array_equal(chunked, sliding)


@settings(max_examples=14, deadline=None)
@given(layouts, stacks, st.integers(1, 100))
def test_document_mode_equals_each_document_alone_with_the_next_bos_behind_it(
    lengths, stack, batch
):
    tokens = make_tokens(lengths)
    found = score(MODELS[stack], tokens, mode="document", batch_tokens=batch)
    for window in document_windows(tokens, BOS):
        alone = plain_nll(MODELS[stack], tokens[window.start : window.end + 1])
        np.testing.assert_allclose(found[window.start : window.end], alone, atol=TOLERANCE)


def test_all_modes_agree_on_a_stream_that_fits_the_context():
    tokens = make_tokens([CONTEXT])
    scores = [
        score(MODELS["mixed"], tokens, mode=mode, stride=4)
        for mode in ("chunked", "sliding", "streaming", "document")
    ]
    for other in scores[1:]:
        np.testing.assert_allclose(other, scores[0], atol=TOLERANCE)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 80), stacks, st.booleans())
def test_no_token_beyond_the_receptive_field_touches_a_score(position, stack, masked):
    model = make_model(stack, document_mask=masked)
    reach = model.plan.receptive_field(CONTEXT)
    tokens = make_tokens([120]).astype(np.int64)
    changed = tokens.copy()
    changed[position] = 4 + 65 if tokens[position] != 4 + 65 else 4 + 66
    before, after = plain_nll(model, tokens), plain_nll(model, changed)
    far = position + reach + 1
    np.testing.assert_array_equal(before[far:], after[far:])


def test_impossible_sizes_are_refused_with_the_value_and_what_is_accepted():
    with pytest.raises(OptionsError, match="stride 17 is longer than the context 16"):
        score(MODELS["mixed"], make_tokens([40]), mode="sliding", stride=17)
    with pytest.raises(OptionsError, match="'foo' is unknown; accepted: chunked, sliding"):
        EvaluationOptions(mode="foo")
    with pytest.raises(OptionsError, match="context 0"):
        EvaluationOptions(context=0)
