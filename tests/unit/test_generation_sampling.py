"""Sampling and streams: filters keep what they say, seeds repeat, stop strings never leak."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from niblick.engine import Sampling
from niblick.engine.continuation import StopFilter
from niblick.engine.sampling import choose, uniform
from niblick.errors import NiblickError

LOGITS = np.log(np.array([0.1, 0.4, 0.05, 0.25, 0.2], dtype=np.float32))


def drawn(count: int = 2000, **options: float) -> np.ndarray:
    sampling = Sampling(**options)
    return (
        np.bincount([choose(LOGITS, sampling, draw) for draw in range(count)], minlength=5) / count
    )


def test_temperature_zero_takes_the_first_of_the_best_tokens():
    tied = np.array([0.0, 2.0, 2.0], dtype=np.float32)
    assert choose(tied, Sampling(temperature=0.0), 0) == 1


def test_draws_follow_the_softmax_at_temperature_one():
    assert np.abs(drawn(temperature=1.0) - np.exp(LOGITS)).max() < 0.04


def test_top_k_draws_only_the_likeliest_tokens_in_their_proportions():
    shares = drawn(top_k=2)
    assert set(np.flatnonzero(shares)) == {1, 3}
    assert abs(shares[1] - 0.4 / 0.65) < 0.04


def test_top_p_keeps_the_fewest_tokens_that_hold_the_probability():
    assert set(np.flatnonzero(drawn(top_p=0.64))) == {1, 3}
    assert set(np.flatnonzero(drawn(top_p=0.66))) == {1, 3, 4}
    assert set(np.flatnonzero(drawn(top_p=1e-9))) == {1}


def test_top_p_counts_within_the_top_k():
    assert set(np.flatnonzero(drawn(top_k=3, top_p=0.7))) == {1, 3}


def test_uniform_numbers_are_those_of_splitmix64():
    assert int(uniform(0, 0) * 2**53) == 0xE220A8397B1DCDAF >> 11
    assert len({uniform(7, draw) for draw in range(1000)}) == 1000


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.5},
    ],
)
def test_values_out_of_range_are_refused_by_name(wrong):
    (key,) = wrong
    with pytest.raises(NiblickError, match=key.replace("_", "-")):
        Sampling(**wrong)


@settings(max_examples=200, deadline=None)
@given(
    st.text("abc", max_size=30),
    st.lists(st.text("abc", min_size=1, max_size=4), max_size=3),
    st.data(),
)
def test_a_stop_filter_gives_the_text_before_the_first_stop_string_however_it_is_cut(
    text, stops, data
):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    hold = StopFilter(stops)
    out = "".join(hold.push(text[a:b]) for a, b in pairwise([0, *cuts, len(text)]))
    ends = [at for at in (text.find(stop) for stop in stops) if at >= 0]
    if hold.stopped:
        assert ends
        assert any(text[len(out) :].startswith(stop) for stop in stops)
        assert not any(stop in out for stop in stops)
    else:
        assert not ends
        assert out + hold.flush() == text
