"""A quantized tensor means codes times steps times factors, whatever its size and parts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from niblick.codecs import QuantizedTensor
from niblick.codecs.quantized import narrow, round_to_bfloat16


@st.composite
def quantized(draw: st.DrawFn) -> QuantizedTensor:
    rows, columns = draw(st.integers(0, 9)), draw(st.integers(0, 9))
    generator = np.random.default_rng(draw(st.integers(0, 999)))
    group = draw(st.integers(1, 4))
    rank = draw(st.integers(0, 2))
    factors = generator.normal(size=-(-columns // group)) if draw(st.booleans()) else None
    parts = generator.normal(size=(rows, rank)), generator.normal(size=(rank, columns))
    return QuantizedTensor(
        shape=(columns, rows) if columns and draw(st.booleans()) else (rows, columns),
        codes=generator.integers(-9, 10, (rows, columns)).astype(np.int8),
        row_steps=generator.normal(size=rows) * 10.0 ** generator.integers(-50, 30),
        column_factors=factors,
        group=group,
        correction=parts if rank else None,
        rounded_to=draw(st.sampled_from(["float32", "bfloat16"])),
    )


@settings(max_examples=80, deadline=None)
@given(quantized())
def test_values_are_products_in_float64_rounded_once(tensor: QuantizedTensor) -> None:
    values = np.zeros(tensor.codes.shape)
    for (r, c), code in np.ndenumerate(tensor.codes):
        factors = tensor.column_factors
        step = tensor.row_steps[r] * (1.0 if factors is None else factors[c // tensor.group])
        values[r, c] = code * step
    if tensor.correction is not None:
        values = values + tensor.correction[0] @ tensor.correction[1]
    with np.errstate(over="ignore"):
        expected = torch.from_numpy(values.astype(np.float32))
    if tensor.rounded_to == "bfloat16":
        expected = expected.bfloat16().float()
    found = tensor.dequantize()
    assert found.dtype == np.float32 and found.shape == tensor.shape
    assert np.array_equal(found.ravel(), expected.numpy().ravel(), equal_nan=True)


@pytest.mark.parametrize("shape", [(3, 70_000), (70_000, 3), (1000, 100)])
def test_large_tensors_are_whole_and_no_zero_is_negative(shape: tuple[int, int]) -> None:
    generator = np.random.default_rng(0)
    codes = generator.integers(-2, 3, shape)
    steps, factors = np.full(shape[0], 1e-46), generator.choice([1.0, 1e46], shape[1])
    tensor = QuantizedTensor(
        shape=shape, codes=narrow(codes), row_steps=steps, column_factors=factors
    )
    found = tensor.dequantize()
    assert tensor.codes.dtype == np.int8
    assert np.array_equal(found, (codes * (steps[:, None] * factors)).astype(np.float32))
    assert not np.signbit(found[found == 0]).any()


@settings(max_examples=80, deadline=None)
@given(npst.arrays(np.float32, st.integers(0, 20), elements=st.floats(width=32)))
def test_bfloat16_is_rounded_as_torch_rounds_it(values: np.ndarray) -> None:
    expected = torch.from_numpy(values).bfloat16().float().numpy()
    assert np.array_equal(round_to_bfloat16(values), expected, equal_nan=True)


@pytest.mark.parametrize(("largest", "kind"), [(127, "i1"), (128, "i2"), (32768, "i4")])
def test_codes_are_kept_in_the_narrowest_integers(largest: int, kind: str) -> None:
    codes = np.array([[largest, -largest]])
    assert narrow(codes).dtype == np.dtype(kind) and (narrow(codes) == codes).all()
