"""Weights survive the engine's storage: exactly on a grid, to 16 bits otherwise."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from niblick.generation.lattice import decode, encode

SHAPES = st.tuples(st.integers(1, 9), st.integers(2, 140))


@settings(max_examples=60, deadline=None)
@given(SHAPES, st.sampled_from([4, 6, 8]), st.integers(0, 2**32 - 1), st.booleans())
def test_codes_times_scales_come_back_exactly_in_their_own_width(shape, bits, seed, half):
    draw = np.random.default_rng(seed)
    most = (1 << (bits - 1)) - 1
    codes = draw.integers(-most, most + 1, shape)
    codes[:, 0], codes[:, 1] = most, 1  # as in any matrix of some size, each row uses its range and its smallest code
    scales = (draw.random(shape[0]) + 0.01).astype(np.float16 if half else np.float32).astype(np.float32)
    weight = codes.astype(np.float32) * scales[:, None]
    found = encode(weight)
    assert found.bits <= bits
    assert np.abs(decode(found) - weight).max() <= 3e-7 * np.abs(weight).max()


@settings(max_examples=60, deadline=None)
@given(SHAPES, st.integers(0, 2**32 - 1))
def test_any_weights_come_back_within_half_a_step_of_sixteen_bits(shape, seed):
    weight = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    wrong = np.abs(decode(encode(weight)) - weight)
    assert (wrong <= np.abs(weight).max(axis=1, keepdims=True) / 65_000).all()


def test_rows_of_zeros_stay_zero_and_small_numbers_stay_finite():
    weight = np.zeros((3, 70), dtype=np.float32)
    weight[1, 5] = 1e-30
    found = encode(weight)
    assert found.bits == 4
    assert np.array_equal(decode(found) != 0, weight != 0)


def test_a_row_whose_smallest_code_is_not_one_is_still_found():
    weight = np.array([[3, 5, -7, 0, 31, 11]], dtype=np.float32) * np.float32(0.013)
    assert encode(weight).bits == 6
