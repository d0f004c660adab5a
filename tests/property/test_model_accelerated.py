"""The accelerator's forms on the CPU: attention by block masks, the head's loss in chunks and the
whole step as one graph, each against the readable form, forward and backward.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import flex_attention as flex_module
from torch.utils._python_dispatch import TorchDispatchMode

from everything import ACROSS, assert_a_plain_step, assert_readable_attention, everything
from niblick.components.functional import rotation
from niblick.model import LanguageModel
from niblick.model.accelerated import Accelerated
from niblick.model.flex import BLOCK, Attend, block_mask
from niblick.model.graphs import one_graph
from niblick.model.head import fused_head_loss
from niblick.model.lm import PLAIN
from niblick.plan import make_plan
from niblick.recipe import list_recipes, load_recipe

RUNS = settings(max_examples=25, deadline=None)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def cpu_may_go_backward(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """flex_attention refuses gradients on a CPU, where inductor has no kernel for them; its dense
    form, which is what runs here, has them.
    """
    monkeypatch.setattr(flex_module, "_validate_device", lambda *tensors: None)
    monkeypatch.setattr(flex_module, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    yield


def documents(length: int, batch: int, seed: int) -> torch.Tensor:
    """Starts (B, T) of documents of random lengths, some of a single token."""
    begins = torch.rand(batch, length, generator=torch.Generator().manual_seed(seed)) < 0.02
    begins[:, length // 3 : length // 3 + 3] = True
    positions = torch.where(begins, torch.arange(length), 0)
    return positions.cummax(1).values


def allowed(length: int, span: int, first: torch.Tensor | None) -> torch.Tensor:
    """The readable mask (B or 1, T, T)."""
    query, key = torch.arange(length)[:, None], torch.arange(length)[None]
    mask = ((key <= query) & (key > query - span))[None]
    return mask if first is None else mask & (key >= first[:, :, None])


def table(counts: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Which blocks (B, N, N) a pair of tables lists; none may be listed twice."""
    counts, indices = counts[:, 0], indices[:, 0].long()
    listed = torch.arange(indices.shape[-1]) < counts[..., None]
    times = torch.zeros_like(indices).scatter_add(2, indices, listed.long())
    assert int(times.max()) <= 1
    return times > 0


@RUNS
@given(
    length=st.integers(1, 700),
    span=st.integers(1, 800),
    within=st.booleans(),
    seed=st.integers(0, 99),
)
def test_block_tables_list_what_the_mask_needs_and_nothing_else(length, span, within, seed) -> None:
    first = documents(length, 2, seed) if within else None
    mask, expected = block_mask(span, length, CPU, first), allowed(length, span, first)
    partly, whole = (
        table(*pair)
        for pair in (
            (mask.kv_num_blocks, mask.kv_indices),
            (mask.full_kv_num_blocks, mask.full_kv_indices),
        )
    )
    assert not bool((partly & whole).any())
    blocks = -(-length // BLOCK)
    pad = blocks * BLOCK - length
    padded = torch.nn.functional.pad(expected, (0, pad, 0, pad))
    by_block = padded.view(-1, blocks, BLOCK, blocks, BLOCK).transpose(2, 3)
    inside = torch.ones(length, length, dtype=torch.bool)
    inside = torch.nn.functional.pad(inside, (0, pad, 0, pad))
    inside = inside.view(blocks, BLOCK, blocks, BLOCK).transpose(1, 2)
    assert bool((by_block | ~inside).flatten(3).all(-1)[whole].all()), "a whole block is seen whole"
    listed = partly | whole
    assert torch.equal(listed, by_block.flatten(3).any(-1)), "what is seen is listed, no more"


@pytest.mark.parametrize(
    ("length", "span", "within"),
    [(300, 40, True), (290, 290, True), (300, 129, False), (129, 7, False), (1, 1, True)],
)
def test_flex_attention_gives_the_numbers_of_the_readable_mask(length, span, within) -> None:
    seed = 7
    first = documents(length, 2, seed) if within else None
    sizes = {"length": length, "width": 16, "span": span, "seed": seed}
    assert_readable_attention(Attend(first), first, **sizes)


class Largest(TorchDispatchMode):
    """The most elements that any operator gave."""

    most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for t in found if isinstance(found, tuple | list) else (found,):
            if isinstance(t, torch.Tensor):
                self.most = max(self.most, t.numel())
        return found


@RUNS
@given(
    rows=st.integers(1, 70),
    chunk=st.integers(1, 80),
    cap=st.sampled_from([None, 2.0, 30.0]),
    seed=st.integers(0, 99),
)
def test_the_loss_in_chunks_is_the_loss_and_has_its_gradients(rows, chunk, cap, seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    hidden, weight = torch.randn(rows, 8, generator=generator), torch.randn(50, 8)
    targets = torch.randint(50, (rows,), generator=generator)
    found = []
    for form in (PLAIN.head_loss, lambda *a: fused_head_loss(*a, logits=50 * chunk)):
        h, w = hidden[None].clone().requires_grad_(), weight.clone().requires_grad_()
        loss = form(h, w, targets[None], cap)
        (3 * loss).backward()
        found.append((loss.detach(), h.grad, w.grad))
    for plain, fused in zip(*found, strict=True):
        torch.testing.assert_close(fused, plain, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        alone = fused_head_loss(hidden[None], weight, targets[None], cap, logits=50 * chunk)
    torch.testing.assert_close(alone, found[0][0], rtol=1e-5, atol=1e-6)


def test_no_pass_holds_the_logits_of_a_whole_batch() -> None:
    hidden, weight = torch.randn(2, 300, 4).requires_grad_(), torch.randn(64, 4).requires_grad_()
    with Largest() as seen:
        loss = fused_head_loss(
            hidden, weight, torch.zeros(2, 300, dtype=torch.int64), 30.0, 64 * 50
        )
        loss.backward()
    assert seen.most <= 64 * 50 < 600 * 64
    assert weight.grad is not None and hidden.grad is not None


def test_the_model_of_everything_has_all_that_shipped_recipes_have() -> None:
    def kinds(model: Any) -> set[str]:
        plan = make_plan(model)
        found = {layer.mixer for layer in plan.layers} | {p.component for p in plan.parameters}
        return found | {
            p.name.rpartition(".")[2] for p in plan.parameters if p.component == "attention"
        }

    shipped = (kinds(load_recipe(name).model) for name in list_recipes())
    assert kinds(everything().recipe) >= set().union(*shipped)


@pytest.mark.parametrize("within", [False, True])
def test_a_step_is_one_graph_with_the_plain_loss_and_gradients(within: bool) -> None:
    changes = [] if within else ACROSS
    assert_a_plain_step(changes, Accelerated(), lambda loss: one_graph(loss, "aot_eager"))


@pytest.mark.parametrize("name", list_recipes())
def test_kept_rotary_angles_are_the_computed_ones_to_the_bit(name: str) -> None:
    model = LanguageModel(load_recipe(name).model, seed=None)
    recipe = model.recipe
    sizes = recipe.rope_dims // 2, recipe.rope_frequency_dims
    for start, length in ((0, recipe.context), (0, 1), (7, 13), (recipe.context - 3, 3)):
        kept = model._rotation(recipe.context, start, length)
        made = rotation(model._base, *sizes, start, length, CPU)
        assert all(torch.equal(a, b) for a, b in zip(kept, made, strict=True))
    assert (
        model._rotation(4 * recipe.context, 0, 4 * recipe.context)[0].shape[0] == 4 * recipe.context
    )
    assert not any("rotary" in key for key in model.state_dict())
