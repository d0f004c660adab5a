"""Weights survive the engine's storage: exactly on a grid, to 24 bits otherwise."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from niblick.engine.lattice import decode, encode

SHAPES = st.tuples(st.integers(1, 9), st.integers(2, 140))


@settings(max_examples=60, deadline=None)
@given(SHAPES, st.sampled_from([4, 6, 8]), st.integers(0, 2**32 - 1), st.booleans())
def test_codes_times_scales_come_back_exactly_in_their_own_width(shape, bits, seed, half):
    draw = np.random.default_rng(seed)
    most = (1 << (bits - 1)) - 1
    codes = draw.integers(-most, most + 1, shape)
    codes[:, 0], codes[:, 1] = (
        most,
        1,
    )  # as in any matrix of some size, each row uses its range and its smallest code
    scales = (
        (draw.random(shape[0]) + 0.01).astype(np.float16 if half else np.float32).astype(np.float32)
    )
    weight = codes.astype(np.float32) * scales[:, None]
    found = encode(weight)
    assert found.bits <= bits
    assert np.abs(decode(found) - weight).max() <= 3e-7 * np.abs(weight).max()


@settings(max_examples=60, deadline=None)
@given(SHAPES, st.integers(0, 2**32 - 1))
def test_any_weights_come_back_within_half_a_step_of_twenty_four_bits(shape, seed):
    weight = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    wrong = np.abs(decode(encode(weight)) - weight)
    assert (wrong <= np.abs(weight).max(axis=1, keepdims=True) / 8_000_000).all()


def test_rows_of_zeros_stay_zero_and_small_numbers_stay_finite():
    weight = np.zeros((3, 70), dtype=np.float32)
    weight[1, 5] = 1e-30
    found = encode(weight)
    assert found.bits == 2
    assert np.array_equal(decode(found) != 0, weight != 0)


def test_a_row_whose_smallest_code_is_not_one_is_still_found():
    weight = np.array([[3, 5, -7, 0, 31, 11]], dtype=np.float32) * np.float32(0.013)
    assert encode(weight).bits == 6


def on_grid(shape: tuple[int, int], spread: float, seed: int) -> np.ndarray:
    """Trellis levels times row and column steps a quarter octave apart, as rate-distortion packing
    writes them.
    """
    draw = np.random.default_rng(seed)
    levels = np.rint(draw.standard_normal(shape) * spread)
    odd = draw.integers(0, 2, shape) * np.sign(levels)
    exponents = (
        draw.normal(0, 5, shape[0]).round()[:, None] + draw.normal(0, 5, shape[1]).round()[None]
    )
    return ((2 * levels - odd) * (0.001 * (1 + draw.random())) * 2 ** (exponents / 4)).astype(
        np.float32
    )


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(st.integers(48, 150), st.integers(48, 150)),
    st.sampled_from([0.5, 1.0, 2.0, 5.0]),
    st.integers(0, 2**32 - 1),
)
def test_a_grid_of_row_and_column_steps_is_found_again_exactly(shape, spread, seed):
    weight = on_grid(shape, spread, seed)
    found = encode(weight)
    assert found.columns is not None
    assert found.bits <= 8 or spread > 2
    assert np.abs(decode(found) - weight).max() <= 1e-6 * np.abs(weight).max()


def test_rows_and_columns_of_zeros_do_not_hide_a_grid():
    weight = on_grid((100, 90), 1.0, 3)
    weight[[0, 5, 40]] = 0
    weight[:, [0, 7, 88]] = 0
    found = encode(weight)
    assert found.bits <= 8
    assert np.array_equal(decode(found) == 0, weight == 0)
