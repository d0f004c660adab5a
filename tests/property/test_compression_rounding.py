"""Rounding per row: export and quantization-aware training agree for any weights."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from niblick.codecs.base import RoundingSpec
from niblick.codecs.nearest import quantize, quantized
from niblick.compression import round_trip

MATRICES = npst.arrays(
    np.float32,
    npst.array_shapes(min_dims=2, max_dims=3, max_side=9),
    elements=st.floats(-1e4, 1e4, width=32),
)


@settings(max_examples=80, deadline=None)
@given(MATRICES, st.integers(2, 8))
def test_training_rounds_exactly_as_the_export_does(weights: np.ndarray, bits: int) -> None:
    spec = RoundingSpec(bits)
    codes, scales = quantize(weights, spec)
    stored = quantized(weights.shape, codes, scales).dequantize()
    assert round_trip(torch.from_numpy(weights), spec).numpy().tobytes() == stored.tobytes()
    assert int(np.abs(codes).max()) <= spec.limit


@settings(max_examples=80, deadline=None)
@given(MATRICES, st.integers(3, 8))
def test_the_error_is_within_half_a_step_of_the_row(weights: np.ndarray, bits: int) -> None:
    weight, spec = torch.from_numpy(weights), RoundingSpec(bits)
    error = (round_trip(weight, spec) - weight).abs().flatten(1).amax(1)
    step = weight.abs().flatten(1).amax(1) / spec.limit
    assert bool((error <= 0.502 * step + spec.limit * 2e-8 + step * spec.limit / 1024).all())


def test_small_rows_keep_their_resolution() -> None:
    weight = torch.randn(4, 64, generator=torch.Generator().manual_seed(0)) * 1e-3
    error = (round_trip(weight, RoundingSpec(6)) - weight).norm() / weight.norm()
    assert error < 0.03
