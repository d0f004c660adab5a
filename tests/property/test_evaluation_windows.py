"""Windows are pure functions: every token is scored exactly once, and context bounds hold, whatever
the sizes.
"""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from niblick.scoring.windows import (
    chunked_windows,
    document_windows,
    equal_batches,
    padded_batches,
    pieces,
    share,
    sliding_windows,
)

counts = st.integers(0, 400)
contexts = st.integers(1, 64)


def scored(windows):
    return [i for window in windows for i in range(window.first, window.end)]


@st.composite
def strides(draw):
    context = draw(contexts)
    return context, draw(st.integers(1, context))


@settings(max_examples=150, deadline=None)
@given(counts, strides())
def test_sliding_scores_every_prediction_once_in_order(predictions, sizes):
    assert scored(sliding_windows(predictions, *sizes)) == list(range(predictions))


@settings(max_examples=150, deadline=None)
@given(counts, strides())
def test_sliding_windows_stay_within_the_context_and_begin_at_multiples_of_the_stride(
    predictions, sizes
):
    context, stride = sizes
    for index, window in enumerate(sliding_windows(predictions, context, stride)):
        assert window.start == index * stride and window.length <= context
        assert window.start <= window.first < window.end <= predictions


@settings(max_examples=150, deadline=None)
@given(counts, strides())
def test_sliding_gives_every_later_token_at_least_context_minus_stride_earlier_inputs(
    predictions, sizes
):
    context, stride = sizes
    for window in list(sliding_windows(predictions, context, stride))[1:]:
        assert window.first - window.start >= context - stride


@settings(max_examples=100, deadline=None)
@given(counts, contexts)
def test_chunked_windows_do_not_overlap(predictions, context):
    windows = list(chunked_windows(predictions, context))
    assert scored(windows) == list(range(predictions))
    assert all(window.first == window.start for window in windows)


layouts = st.lists(st.integers(0, 3), min_size=2, max_size=200).map(np.array)


@settings(max_examples=150, deadline=None)
@given(layouts)
def test_documents_score_every_prediction_once_and_begin_at_a_bos(tokens):
    windows = document_windows(tokens, 1)
    assert scored(windows) == list(range(len(tokens) - 1))
    assert all(window.start == 0 or tokens[window.start] == 1 for window in windows)
    assert all(1 not in tokens[window.start + 1 : window.end] for window in windows)


def test_a_document_ends_with_the_prediction_of_the_next_bos():
    windows = document_windows(np.array([1, 5, 6, 1, 7, 1]), 1)
    assert [(w.start, w.end) for w in windows] == [(0, 3), (3, 5)]


def test_the_published_sliding_example_scores_all_then_the_last_stride_then_the_tail():
    windows = [(w.start, w.end, w.first) for w in sliding_windows(11, 4, 2)]
    assert windows == [(0, 4, 0), (2, 6, 4), (4, 8, 6), (6, 10, 8), (8, 11, 10)]


@settings(max_examples=100, deadline=None)
@given(counts, strides(), st.integers(1, 300))
def test_equal_batches_keep_all_windows_in_order_with_one_shape_each(predictions, sizes, limit):
    windows = list(sliding_windows(predictions, *sizes))
    batches = list(equal_batches(windows, limit))
    assert [window for batch in batches for window in batch] == windows
    for batch in batches:
        assert len({window.shape for window in batch}) == 1
        assert len(batch) == 1 or sum(window.length for window in batch) <= limit


@settings(max_examples=100, deadline=None)
@given(layouts, st.integers(1, 300), st.one_of(st.none(), st.integers(1, 5)))
def test_padded_batches_hold_every_document_once_within_the_limit(tokens, limit, rows):
    windows = document_windows(tokens, 1)
    batches = padded_batches(windows, limit, rows)
    assert sorted((w for batch in batches for w in batch), key=lambda w: w.start) == windows
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(w.length for w in batch) <= limit
        assert rows is None or len(batch) <= rows


@given(counts, st.integers(1, 50))
def test_pieces_cut_a_stream_without_gap_or_overlap(predictions, size):
    cuts = pieces(predictions, size)
    assert [i for a, b in cuts for i in range(a, b)] == list(range(predictions))
    assert all(b - a == size for a, b in cuts[:-1])


@given(st.integers(0, 100), st.integers(1, 9))
def test_shares_of_all_processes_cover_the_items_evenly(count, size):
    shares = [share(count, rank, size) for rank in range(size)]
    assert [i for part in shares for i in part] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
