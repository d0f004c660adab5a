"""What holds for every model a recipe can describe: causality, exact counts, one answer however
tokens arrive.
"""

from __future__ import annotations

import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from niblick.model import LanguageModel, State
from niblick.recipe.model import ModelRecipe
from property.plans import BOS, VOCAB, model_recipes, scattered, tokens

TOLERANCE = 1e-5
RUNS = settings(max_examples=20, deadline=None)
lengths = st.integers(2, 23)
seeds = st.integers(0, 999)


def close(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    return bool((found - wanted).abs().max() <= TOLERANCE * max(1.0, float(wanted.abs().max())))


@RUNS
@given(model=model_recipes(), length=lengths, seed=seeds, data=st.data())
def test_a_changed_future_token_leaves_earlier_logits_bit_equal(model, length, seed, data) -> None:
    built, ids = scattered(model, seed), tokens(length, seed=seed)
    at = data.draw(st.integers(1, length - 1))
    other = ids.clone()
    other[:, at] = (other[:, at] + data.draw(st.integers(1, VOCAB - 1))) % VOCAB
    with torch.no_grad():
        first, second = built.logits(ids), built.logits(other)
    assert torch.equal(first[:, :at], second[:, :at])
    assert not torch.equal(first[:, at], second[:, at])


@RUNS
@given(model=model_recipes())
def test_the_plan_counts_exactly_what_is_built(model) -> None:
    built = LanguageModel(model, seed=None)
    assert built.plan.parameter_count == sum(p.numel() for p in built.parameters())
    assert [(p.name, p.shape) for p in built.plan.parameters] == sorted_as_planned(built)
    assert built.plan.weight_blocks == sum(len(segment.blocks) for segment in model.stack)


def sorted_as_planned(built: LanguageModel) -> list[tuple[str, tuple[int, ...]]]:
    shapes = {name: tuple(p.shape) for name, p in built.state_dict().items()}
    assert set(shapes) == {p.name for p in built.plan.parameters}
    return [(p.name, shapes[p.name]) for p in built.plan.parameters]


@RUNS
@given(
    model=model_recipes(), length=lengths, seed=seeds, cuts=st.lists(st.integers(1, 7), max_size=5)
)
def test_parallel_chunked_and_token_by_token_agree(model, length, seed, cuts) -> None:
    # In float64, as random weights can make any rounding of float32 large.
    built, ids = scattered(model, seed).double(), tokens(length, seed=seed)
    with torch.no_grad():
        whole, last = built(ids, context=model.context)
        chunked, state = in_pieces(built, ids, cuts)
        single, steps = in_pieces(built, ids, [1] * length)
    assert close(chunked, whole) and close(single, whole)
    assert close(built.logits(ids, context=model.context).detach(), whole)
    for other in (state, steps):
        assert other.position == last.position == length
        assert all(close(other.tensors[k], t) for k, t in last.tensors.items())


def in_pieces(
    built: LanguageModel, ids: torch.Tensor, sizes: list[int]
) -> tuple[torch.Tensor, State]:
    state, found, at = built.empty_state(ids.shape[0]), [], 0
    for size in [*sizes, ids.shape[1]]:
        if at < ids.shape[1]:
            logits, state = built(ids[:, at : at + size], state)
            found.append(logits)
            at += size
    return torch.cat(found, dim=1), state


@RUNS
@given(model=model_recipes(), length=lengths, seed=seeds)
def test_states_hold_exactly_the_planned_bytes_however_long_the_text(model, length, seed) -> None:
    built, ids = scattered(model, seed), tokens(length, batch=1, seed=seed)
    planned = built.plan.decode_state_bytes()
    with torch.no_grad():
        _, after = built(ids, built.empty_state())
        _, stateless = built(ids, context=model.context)
    for state in (built.empty_state(), after, stateless):
        assert state.nbytes == planned
        assert sum(t.untyped_storage().nbytes() for t in state.tensors.values()) == planned


@settings(max_examples=15, deadline=None)
@given(model=model_recipes(), length=lengths, seed=seeds)
def test_a_bf16_model_has_a_bf16_state_of_the_planned_bytes(model, length, seed) -> None:
    built, ids = scattered(model, seed).bfloat16(), tokens(length, batch=1, seed=seed)
    with torch.no_grad():
        logits, after = built(ids, built.empty_state())
    assert logits.dtype == torch.float32
    assert after.nbytes == built.empty_state().nbytes == built.plan.decode_state_bytes("bfloat16")


@RUNS
@given(model=model_recipes(), length=lengths, seed=seeds)
def test_a_call_leaves_the_state_it_was_given_untouched(model, length, seed) -> None:
    built, ids = scattered(model, seed), tokens(length, seed=seed)
    with torch.no_grad():
        _, state = built(ids[:, :1], built.empty_state(2))
        kept = {name: t.clone() for name, t in state.tensors.items()}
        first, _ = built(ids[:, 1:], state)
        again, _ = built(ids[:, 1:], state)
    assert torch.equal(first, again)
    assert all(torch.equal(kept[name], t) for name, t in state.tensors.items())


@RUNS
@given(
    model=model_recipes(document_mask=True, document_attention="within"), length=lengths, seed=seeds
)
def test_everything_before_a_bos_counts_as_absent(model, length, seed) -> None:
    built = scattered(model, seed)
    before, document = tokens(length, seed=seed), tokens(length, seed=seed + 1)
    document[:, 0] = BOS
    with torch.no_grad():
        alone = built.logits(document, context=model.context)
        behind = built.logits(torch.cat([before, document], dim=1), context=model.context)[
            :, length:
        ]
    assert bool((behind - alone).abs().max() <= 1e-4 * max(1.0, float(alone.abs().max())))


@RUNS
@given(model=model_recipes(document_mask=True), length=lengths, seed=seeds)
def test_without_attention_nothing_crosses_a_document_boundary(model, length, seed) -> None:
    stack = [segment.model_copy(update={"layers": ("token-shift",)}) for segment in model.stack]
    values = model.model_dump(mode="json") | {"stack": [s.model_dump(mode="json") for s in stack]}
    values["value_embedding"] = {"enabled": False}
    values["sidecar"] = values["sidecar"] | {"enabled": True, "layers": [0]}
    built = scattered(ModelRecipe.model_validate(values), seed)
    ids = tokens(2 * length, seed=seed)
    ids[:, length] = BOS
    other = torch.cat([tokens(length, seed=seed + 1), ids[:, length:]], dim=1)
    with torch.no_grad():
        assert torch.equal(built.logits(ids)[:, length:], built.logits(other)[:, length:])


@RUNS
@given(model=model_recipes(document_mask=False, document_attention="across"), seed=seeds)
def test_without_masking_a_bos_is_a_token_like_any_other(model, seed) -> None:
    built, ids = scattered(model, seed), tokens(9, seed=seed, bos_every=2)
    swapped = LanguageModel(model.model_copy(update={"bos_id": 7}), seed=None)
    swapped.load_state_dict(built.state_dict())
    with torch.no_grad():
        assert torch.equal(built.logits(ids), swapped.logits(ids))


@RUNS
@given(model=model_recipes(), length=lengths, seed=seeds)
def test_every_parameter_gets_a_finite_gradient(model, length, seed) -> None:
    built, ids = scattered(model, seed), tokens(length, seed=seed)
    built.logits(ids).square().mean().backward()
    for name, parameter in built.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name


@RUNS
@given(model=model_recipes(), length=lengths, seed=seeds)
def test_a_fresh_model_starts_finite_and_the_same_for_the_same_seed(model, length, seed) -> None:
    first, second, ids = (
        LanguageModel(model, seed=seed),
        LanguageModel(model, seed=seed),
        tokens(length),
    )
    assert all(
        torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)
    )
    assert bool(first.logits(ids).isfinite().all())


@RUNS
@given(model=model_recipes(), rows=st.lists(st.integers(0, 1), min_size=1, max_size=3), seed=seeds)
def test_selected_rows_of_a_state_continue_as_those_sequences(model, rows, seed) -> None:
    built, ids = scattered(model, seed), tokens(12, seed=seed)
    chosen = torch.tensor(rows)
    with torch.no_grad():
        _, state = built(ids[:, :7], built.empty_state(2))
        together, _ = built(ids[:, 7:], state)
        apart, _ = built(ids[chosen, 7:], state.select(chosen))
    assert close(apart, together[chosen])


@settings(max_examples=15, deadline=None)
@given(model=model_recipes(context=40), seed=seeds, factor=st.integers(2, 5))
def test_the_rotary_base_follows_the_declared_context_and_nothing_else(model, seed, factor) -> None:
    assume(model.attention.rope.train_length is not None)
    built, ids = scattered(model, seed), tokens(10, seed=seed)
    declared = 40 * factor
    with torch.no_grad():
        whole, _ = built(ids, context=declared)
        first, state = built(ids[:, :4], built.empty_state(2, context=declared))
        rest, state = built(ids[:, 4:], state)
    assert state.context == declared
    assert close(torch.cat([first, rest], dim=1), whole)


@settings(max_examples=15, deadline=None)
@given(model=model_recipes(), length=lengths, seed=seeds)
def test_bf16_autocast_runs_every_plan_forward_backward_and_in_pieces(model, length, seed) -> None:
    built, ids = scattered(model, seed), tokens(length, seed=seed)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, _ = built(ids[:, 1:], built(ids[:, :1], built.empty_state(2))[1])
        built.logits(ids).square().mean().backward()
    assert logits.dtype == torch.float32 and bool(logits.isfinite().all())
    assert all(bool(p.grad.isfinite().all()) for p in built.parameters() if p.grad is not None)
