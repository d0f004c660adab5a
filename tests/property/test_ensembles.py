"""An ensemble is the mean of its members' probabilities, whoever computes it and however tokens
arrive.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engines import quantized, tensors_of
from niblick.engine import GREEDY, NativeEngine, Sampling, open_engine
from niblick.engine.batch import sequence
from niblick.engine.continuation import continue_tokens
from niblick.engine.ensemble import EnsembleEngine
from niblick.evaluation.torch_engine import TorchEngine
from niblick.model import LanguageModel, members_of, new_model
from niblick.plan import make_plan
from niblick.recipe import load_recipe, stored_values
from niblick.toolchain import ENGINE
from property.plans import VOCAB, model_recipes, scattered, tokens
from wasm_engine import WasmEngine

CLOSE = 3e-3  # of single tokens: the native engine keeps keys and values in 16 bits
RUNS = settings(max_examples=10, deadline=None)
recipes = st.integers(2, 4).flatmap(lambda count: model_recipes(members=count))
seeds = st.integers(0, 999)


def small(members: int = 2, levels: int = 60, *changes: str):
    """An ensemble of token shift and attention, and its tensors, matrices quantized."""
    sizes = ["model.dim=64", "model.context=48", "model.vocab_size=260", *changes]
    recipe = load_recipe("token-shift-small", [*sizes, f"model.members={members}"])
    model = scattered(recipe.model)
    tensors = {
        name: quantized(value, levels) if value.ndim == 2 and min(value.shape) >= 16 else value
        for name, value in tensors_of(model).items()
    }
    return model, tensors


def native(plan, tensors, **options) -> NativeEngine:
    library = ENGINE.obtain()
    if library is None:
        pytest.skip("needs a C compiler")
    return NativeEngine(plan, tensors, library, **options)


def rows(engine, ids, at: int = 0) -> np.ndarray:
    engine.reset(0)
    engine.advance(np.zeros(len(ids), np.int32), ids, "all")
    return engine.rows(len(ids)).copy()


@RUNS
@given(recipe=recipes, seed=seeds, cuts=st.lists(st.integers(1, 7), max_size=4))
def test_it_is_the_mean_of_its_members_in_any_cut_of_the_tokens(recipe, seed, cuts) -> None:
    model, ids = scattered(recipe, seed).double(), tokens(14, seed=seed)
    with torch.no_grad():
        each = [member.logits(ids).softmax(-1) for member in members_of(model)]
        whole, after = model(ids)
        state, parts, start = model.empty_state(2, context=after.context), [], 0
        for length in [*cuts, 14]:
            if start < 14:
                logits, state = model(ids[:, start : start + length], state)
                parts.append(logits)
                start += length
    assert torch.allclose(whole.exp(), torch.stack(each).mean(0).float(), atol=1e-6)
    assert torch.allclose(whole.exp().sum(-1), torch.ones(2, 14), atol=1e-5)
    assert torch.allclose(torch.cat(parts, 1), whole, atol=1e-4)
    assert {name: t.shape for name, t in state.tensors.items()} == {
        name: t.shape for name, t in after.tensors.items()
    }


@RUNS
@given(recipe=recipes)
def test_its_plan_counts_what_is_built_and_is_so_many_members(recipe) -> None:
    built, one = scattered(recipe), make_plan(recipe.model_copy(update={"members": 1}))
    assert built.plan.parameter_count == sum(p.numel() for p in built.parameters())
    assert set(built.state_dict()) == {p.name for p in built.plan.parameters}
    for name in ("parameter_count", "flops_per_token", "weight_blocks"):
        assert getattr(built.plan, name) == recipe.members * getattr(one, name)
    assert built.plan.decode_state_bytes() == recipe.members * one.decode_state_bytes()


@RUNS
@given(recipe=recipes, seed=seeds)
def test_every_engine_says_what_the_model_says(recipe, seed) -> None:
    model, ids = scattered(recipe, seed), tokens(20, batch=1, seed=seed)[0].numpy()
    found, right = tensors_of(model), rows(TorchEngine(model), ids)
    engines = [
        open_engine(model.plan, found, kind="numpy"),
        native(model.plan, found, threads=1),
        WasmEngine(model.plan, found),
    ]
    targets = np.random.default_rng(seed).integers(0, VOCAB, (20, 2))
    for engine in engines:
        engine.reset(0)
        engine.advance(np.zeros(20, np.int32), ids, "all")
        nll = engine.nll(targets)
        np.testing.assert_allclose(nll, -np.take_along_axis(right, targets, 1), atol=CLOSE)
        np.testing.assert_allclose(engine.rows(20), right, atol=CLOSE)
        np.testing.assert_allclose(engine.logits(0), right[-1], atol=CLOSE)
        np.testing.assert_allclose(engine.nll(targets), nll, atol=1e-5)  # after rows as before


@pytest.mark.parametrize("members", [2, 3])
def test_browsers_write_and_score_what_the_native_engine_does(members: int) -> None:
    model, tensors = small(members)
    wasm, other = WasmEngine(model.plan, tensors), native(model.plan, tensors, threads=1)
    for sampling in (GREEDY, Sampling(temperature=0.9, top_p=0.9, seed=3)):
        texts = [
            list(continue_tokens(each, [1, 7, 2], sampling, max_tokens=60))
            for each in (wasm, other)
        ]
        assert texts[0] == texts[1]
    ids = np.random.default_rng(0).integers(0, 260, 64)
    for engine in (wasm, other):
        rows(engine, ids)
    targets = np.roll(ids, -1)[:, None]
    assert np.abs(wasm.nll(targets) - other.nll(targets)).max() < 1e-4


def test_threads_slots_and_cuts_change_no_bit() -> None:
    model, tensors = small(3)
    ids = np.random.default_rng(0).integers(2, 260, 50)
    alone = native(model.plan, tensors, threads=1)
    alone.read(0, ids)
    wanted, written = (
        alone.logits(0).copy(),
        list(continue_tokens(alone, ids, GREEDY, max_tokens=9)),
    )
    for threads in (2, 3, 5):
        engine = native(model.plan, tensors, threads=threads, slots=4)
        for slot in range(4):
            engine.read(slot, ids[: 10 * slot + 5])
            for token in ids[10 * slot + 5 :]:
                engine.advance([slot], [token], "last")
            assert np.array_equal(engine.logits(slot), wanted)
        every = [sequence(slot, GREEDY, max_tokens=9, vocab=260) for slot in range(4)]
        assert (engine.extend(np.concatenate(every), 9) == np.array(written)[:, None]).all()


def test_very_unlikely_tokens_keep_their_likelihoods() -> None:
    model, _ = small(2, 60, "model.softcap=null")
    with torch.no_grad():
        for member in members_of(model):
            member.tok_emb.weight.mul_(60)
    tensors, ids = tensors_of(model), np.arange(2, 40)
    right = rows(TorchEngine(model), ids)
    assert right.min() < -200
    for engine in (open_engine(model.plan, tensors, kind="numpy"), native(model.plan, tensors)):
        np.testing.assert_allclose(rows(engine, ids), right, rtol=2e-4, atol=5e-3)


def test_the_numpy_engine_writes_the_native_engines_text() -> None:
    model, tensors = small()
    other = open_engine(model.plan, tensors, kind="numpy")
    assert isinstance(other, EnsembleEngine)
    engine = native(model.plan, tensors)
    sampling = Sampling(temperature=0.8, top_k=20, seed=5)
    texts = [
        list(continue_tokens(each, [1, 9], sampling, max_tokens=30)) for each in (engine, other)
    ]
    assert texts[0] == texts[1]
    assert engine.bits.keys() == {n for n in tensors if n in engine.bits}
    assert any(name.startswith("members.1.") for name in engine.bits)


def test_members_begin_from_seeds_of_their_own_and_one_member_is_no_ensemble() -> None:
    recipe = load_recipe("token-shift-small", ["model.dim=64", "model.members=3"])
    first, *others = members_of(new_model(recipe.model))
    for other in others:
        assert not torch.equal(first.tok_emb.weight, other.tok_emb.weight)
    alone = load_recipe("token-shift-small", ["model.dim=64"])
    assert type(new_model(alone.model)) is LanguageModel
    assert "members" not in stored_values(alone)["model"]
    assert stored_values(recipe)["model"]["members"] == 3
