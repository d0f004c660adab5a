"""Attention by flash-attn's calling convention is the readable one: offsets, windows, documents.

The package needs a GPU. In its place stands its contract: sequences one behind the other, each
attended to alone, by the readable mask.
"""

from __future__ import annotations

import sys
from itertools import pairwise
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from everything import ACROSS, assert_readable_attention, batch, everything
from niblick.components.banded import reference_attention
from niblick.model import varlen
from niblick.model.accelerated import Accelerated
from niblick.model.graphs import one_graph
from niblick.model.varlen import VarlenAttend, flash_attention, sequence_starts
from niblick.objective import training_loss


def contract(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    *,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
) -> torch.Tensor:
    """What flash-attn says of q (total, H, E), k and v (total, G, E)."""
    starts = cu_seqlens_q.tolist()
    assert cu_seqlens_q.dtype is cu_seqlens_k.dtype is torch.int32
    assert starts == cu_seqlens_k.tolist() == sorted(starts)
    assert starts[0] == 0 and starts[-1] == len(q)
    assert causal and (window_size[1] == 0 or window_size == (-1, -1))
    outputs = []
    for start, end in pairwise(starts):
        assert end - start <= max_seqlen_q == max_seqlen_k
        if start < end:
            span = end - start if window_size[0] < 0 else window_size[0] + 1
            one = (t[start:end].transpose(0, 1)[None] for t in (q, k, v))
            query, key, value = one
            repeat = query.shape[1] // key.shape[1]
            wide = (t.repeat_interleave(repeat, dim=1) for t in (key, value))
            outputs.append(reference_attention(query, *wide, span)[0].transpose(0, 1))
    return torch.cat(outputs)


@pytest.fixture(autouse=True)
def _any_type(monkeypatch: pytest.MonkeyPatch) -> None:
    """float32 too, so that results can be compared closely."""
    monkeypatch.setattr(varlen, "TYPES", (torch.float32,))


def first_of(length: int, seed: int) -> torch.Tensor:
    """Starts (2, T) of documents of random lengths; a few of a single token."""
    begins = torch.rand(2, length, generator=torch.Generator().manual_seed(seed)) < 0.03
    begins[0, length // 3 : length // 3 + 2] = True
    return torch.where(begins, torch.arange(length), 0).cummax(1).values


@settings(max_examples=25, deadline=None)
@given(
    length=st.integers(64, 200),
    span=st.integers(1, 220),
    within=st.booleans(),
    seed=st.integers(0, 99),
)
def test_it_gives_the_numbers_and_gradients_of_the_readable_mask(length, span, within, seed):
    first = first_of(length, seed) if within else None
    attend = VarlenAttend(contract, first)
    assert_readable_attention(attend, first, length=length, width=8, span=span, seed=seed)


def test_there_are_as_many_starts_whatever_the_documents_are() -> None:
    shapes = {sequence_starts(first_of(160, seed), 2, 160, torch.device("cpu")).shape
              for seed in range(9)}  # fmt: skip
    assert len(shapes) == 1
    short = torch.arange(160).expand(2, 160)  # every token a document, 320 of them
    with pytest.raises(RuntimeError, match="documents are too short for flash-attn"):
        sequence_starts(short, 2, 160, torch.device("cpu"))


def traceable(q, k, v, starts, _starts, most, _most, *, causal, window_size):
    """The same contract without a loop, which a compiler can follow."""
    place = torch.arange(q.shape[0])
    document = torch.searchsorted(starts, place.int(), right=True)
    behind = place[:, None] - place
    span = most if window_size[0] < 0 else window_size[0] + 1
    mask = (document[:, None] == document) & (behind >= 0) & (behind < span)
    heads = [t.transpose(0, 1)[None] for t in (q, k, v)]
    out = scaled_dot_product_attention(*heads, attn_mask=mask, enable_gqa=True)
    return out[0].transpose(0, 1)


def test_a_whole_step_with_it_is_one_graph_and_the_plain_one(monkeypatch) -> None:
    installed = ModuleType("flash_attn")
    installed.flash_attn_varlen_func = traceable
    installed.__spec__ = type(sys.__spec__)("flash_attn", None)
    monkeypatch.setitem(sys.modules, "flash_attn", installed)
    model = everything([*ACROSS, "model.document_attention=within"])
    inputs, targets = batch(model)
    found = []
    for forms in (None, Accelerated(installed=True)):
        model.kernels = forms
        call = (lambda x, y: training_loss(model, x, y)) if forms is None else one_graph(
            lambda x, y: training_loss(model, x, y), "aot_eager"
        )  # fmt: skip
        loss, _ = call(inputs, targets)
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in model.parameters())])
        model.zero_grad(set_to_none=True)
    for plain, fast in zip(*found, strict=True):
        assert (plain is None) == (fast is None)
        if plain is not None:
            torch.testing.assert_close(fast, plain, rtol=2e-3, atol=2e-5)


def test_without_the_package_or_with_a_broken_one_there_is_flex_attention(monkeypatch) -> None:
    assert flash_attention() is None
    broken = ModuleType("flash_attn")
    broken.__spec__ = type(sys.__spec__)("flash_attn", None)
    monkeypatch.setitem(sys.modules, "flash_attn", broken)
    with pytest.warns(RuntimeWarning, match="flash-attn is not used"):
        assert flash_attention() is None
