"""Weights survive the engine's storage: quantized ones exactly, floats to 24 bits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from niblick.codecs.native import load_native
from niblick.codecs.quantized import QuantizedTensor
from niblick.engine import weights
from niblick.engine.weights import decode, encode, store

SHAPES = st.tuples(st.integers(1, 70), st.integers(1, 140))


@settings(max_examples=80, deadline=None)
@given(
    SHAPES,
    st.sampled_from([2, 3, 4, 5, 6, 8, 11, 16, 24]),
    st.sampled_from([None, 1, 32]),
    st.integers(0, 2**32 - 1),
)
def test_codes_of_any_width_and_column_factors_come_back_as_they_are(shape, bits, group, seed):
    draw = np.random.default_rng(seed)
    most = (1 << (bits - 1)) - 1
    factors = None if group is None else draw.random(-(-shape[1] // group)) + 0.1
    tensor = QuantizedTensor(
        shape=shape,
        codes=draw.integers(-most, most + 1, shape),
        row_steps=draw.random(shape[0]) + 0.01,
        column_factors=factors,
        group=group or 1,
    )
    found, right = encode(tensor), tensor.dequantize()
    assert found.bits <= max(bits + bits % 2, 2) or bits in (11, 16)
    assert np.allclose(decode(found), right, rtol=3e-7, atol=0)


@settings(max_examples=60, deadline=None)
@given(SHAPES, st.integers(0, 2**32 - 1))
def test_any_weights_come_back_within_half_a_step_of_twenty_four_bits(shape, seed):
    weight = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    wrong = np.abs(decode(encode(weight)) - weight)
    assert (wrong <= np.abs(weight).max(axis=1, keepdims=True) / 8_000_000).all()


@pytest.mark.parametrize("kind", ["correction", "bfloat16", "large codes", "small steps"])
def test_what_codes_and_steps_cannot_say_is_kept_as_the_values_it_stands_for(kind):
    draw = np.random.default_rng(0)
    codes = draw.integers(-7, 8, (40, 70)).astype(np.int64)
    steps, extra = draw.random(40) + 0.01, {}
    if kind == "correction":
        extra["correction"] = draw.random((40, 2)), draw.random((2, 70))
    elif kind == "bfloat16":
        extra["rounded_to"] = "bfloat16"
    elif kind == "large codes":
        codes *= 1 << 24
    else:
        steps, extra["column_factors"] = steps * 1e-42, np.full(70, 1e42)
    tensor = QuantizedTensor(shape=(40, 70), codes=codes, row_steps=steps, **extra)
    right = tensor.dequantize()
    wrong = np.abs(decode(encode(tensor)) - right)
    assert (wrong <= np.abs(right).max(axis=1, keepdims=True) / 8_000_000).all()


def test_rows_of_zeros_stay_zero_and_small_numbers_stay_finite():
    weight = np.zeros((3, 70), dtype=np.float32)
    weight[1, 5] = 1e-30
    found = encode(weight)
    assert np.array_equal(decode(found) != 0, weight != 0)


@pytest.mark.skipif(load_native(build=True) is None, reason="there is no C compiler here")
@settings(max_examples=80, deadline=None)
@given(
    SHAPES,
    st.sampled_from([np.int8, np.int16, np.int32]),
    st.integers(1, 23),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_compiled_code_lays_codes_out_to_the_same_bytes(shape, kind, bits, tails, seed):
    draw = np.random.default_rng(seed)
    spread = draw.standard_normal(shape) * draw.choice([1, 2.0**bits], shape, p=[0.9, 0.1])
    most = min(np.iinfo(kind).max, 2**23 - 1)
    codes = np.clip(np.rint(spread), -most - 1, most).astype(kind)
    found = []
    for native in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            if not native:
                patch.setattr(weights, "load_native", lambda build: None)
            found.append(store(codes, np.ones(shape[0], np.float32), tails=tails))
    for one, other in zip(*found, strict=True):
        assert np.array_equal(one, other) and getattr(one, "dtype", 0) == getattr(other, "dtype", 0)
