"""Banded attention: the fast blocked and stepped forms equal the masked reference, forward and
backward, at odd sizes.
"""

from __future__ import annotations

from functools import partial

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from niblick.components.banded import banded_attention, reference_attention, stepped_attention

RUNS = settings(max_examples=40, deadline=None)


def operands(length: int, past: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(2, 3, length, 5), (2, 3, past + length, 5), (2, 3, past + length, 5)]
    q, k, v = (torch.randn(shape, generator=generator).requires_grad_() for shape in shapes)
    return q, k, v


@RUNS
@given(
    length=st.integers(1, 61),
    span=st.integers(1, 17),
    past=st.integers(0, 19),
    valid=st.integers(0, 19),
    seed=st.integers(0, 99),
    documents=st.booleans(),
)
def test_the_fast_form_equals_the_reference_forward_and_backward(
    length, span, past, valid, seed, documents
) -> None:
    first = None
    if documents:
        limit = torch.arange(past, past + length)
        first = (
            torch.rand((2, length), generator=torch.Generator().manual_seed(seed)) * (limit + 1)
        ).long()
    results = []
    for attend in (banded_attention, partial(stepped_attention, step=4), reference_attention):
        q, k, v = operands(length, past, seed)
        out = attend(q, k, v, span, min(valid, past), first)
        weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(seed + 1))
        (out * weights).sum().backward()
        results.append((out.detach(), q.grad, k.grad, v.grad))
    for fast, stepped, slow in zip(*results, strict=True):
        assert bool(fast.isfinite().all()) and bool(stepped.isfinite().all())
        torch.testing.assert_close(fast, slow, rtol=1e-5, atol=2e-6)
        torch.testing.assert_close(stepped, slow, rtol=1e-5, atol=2e-6)


@RUNS
@given(length=st.integers(1, 40), span=st.integers(1, 9), seed=st.integers(0, 99))
def test_the_reference_gives_no_weight_outside_the_band(length, span, seed) -> None:
    q, k, v = (t.detach() for t in operands(length, 0, seed))
    kept = reference_attention(q, k, v, span)
    for at in range(length):
        spoiled_k, spoiled_v = k.clone(), v.clone()
        outside = [j for j in range(length) if not at - span < j <= at]
        spoiled_k[:, :, outside], spoiled_v[:, :, outside] = 1e3, 1e3
        spoiled = reference_attention(q, spoiled_k, spoiled_v, span)
        assert torch.equal(spoiled[:, :, at], kept[:, :, at])


def test_window_attention_needs_memory_linear_in_the_length() -> None:
    sizes = {}
    for length in (512, 1024, 2048):
        q, k, v = operands(length, 0, 0)
        seen: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, s=seen: s.append(t.numel()) or t, lambda t: t
        ):
            banded_attention(q, k, v, 17)
        sizes[length] = sum(seen)
    assert sizes[2048] < 2.2 * sizes[1024] < 4.9 * sizes[512]
