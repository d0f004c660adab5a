"""The engine compiled to WebAssembly says what the native engine says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import niblick
from engines import quantized, tensors_of
from niblick.browser.coding import code_matrix
from niblick.browser.image import flatten
from niblick.codecs.symbols import Encoder
from niblick.codecs.tensor_stream import new_tables
from niblick.codecs.trellis import SCALAR, TRELLIS
from niblick.data.corpus import load_corpus
from niblick.engine import GREEDY, Engine, NativeEngine, NumpyEngine
from niblick.engine.continuation import continue_tokens
from niblick.engine.library import ENGINE
from niblick.engine.weights import store
from niblick.errors import NiblickError
from niblick.plan import make_plan
from niblick.recipe import load_recipe
from property.plans import model_recipes, scattered
from wasm_engine import WasmEngine, shipped_image

CLOSE = 1e-4  # of the two best logits: which is chosen is then left open
KINDS = ("token-shift-small", "depth-recurrent-small", "sidecar-small")


def reference(plan, tensors) -> Engine:
    """The native engine; the plain one where there is no compiler."""
    library = ENGINE.obtain()
    if library is None:
        return NumpyEngine(plan, tensors)
    return NativeEngine(plan, tensors, library, threads=1)


def shipped_engines() -> tuple[niblick.Model, Engine, Engine]:
    """The shipped model, and both its engines."""
    model = niblick.load("pocket")
    wasm = WasmEngine(model.plan, image=shipped_image())
    return model, wasm, reference(model.plan, model.tensors)


def compare_greedy(one: Engine, other: Engine, prompts, tokens: int) -> int:
    """How many prompts end early at a tie of `one`; anything else that differs fails."""
    ties = 0
    for prompt in prompts:
        own = list(continue_tokens(one, prompt, GREEDY, max_tokens=tokens))
        found = list(continue_tokens(other, prompt, GREEDY, max_tokens=tokens))
        if own != found:
            at = [a == b for a, b in zip(own, found, strict=True)].index(False)
            one.read(0, [*prompt, *own[:at]])
            first, second = np.sort(one.logits(0))[:-3:-1]
            assert first - second < CLOSE, (prompt, at, first - second)
            ties += 1
    return ties


def nll(engine: Engine, ids: np.ndarray) -> np.ndarray:
    """Nats of every token but the first."""
    engine.reset(0)
    found = []
    for at in range(0, len(ids) - 1, engine.columns):
        part, targets = ids[:-1][at : at + engine.columns], ids[1:][at : at + engine.columns]
        engine.advance(np.zeros(len(part), np.int32), part, "all")
        found.append(engine.nll(targets[:, None].astype(np.int64))[:, 0])
    return np.concatenate(found)


def test_the_shipped_model_writes_and_scores_the_same() -> None:
    model, wasm, native = shipped_engines()
    documents = load_corpus("wiki-vital").splits["validation"]
    prompts = [model.tokenizer.encode_document(text)[:12].tolist() for text in documents[:20]]
    assert compare_greedy(native, wasm, prompts, 256) <= 1
    ids = np.concatenate([model.tokenizer.encode_document(text) for text in documents[:200]])
    ids = ids[:10_001].astype(np.int64)
    assert len(ids) == 10_001
    assert abs(nll(wasm, ids).mean() - nll(native, ids).mean()) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("levels", [3, 100, 1900])
def test_every_published_kind_of_plan_runs(kind: str, levels: int) -> None:
    changes = ["model.dim=64", "model.context=48", "model.vocab_size=260"]
    model = scattered(load_recipe(kind, changes).model, seed=levels)
    tensors = {
        name: quantized(value, levels) if value.ndim == 2 and min(value.shape) >= 16 else value
        for name, value in tensors_of(model).items()
    }
    wasm, native = WasmEngine(model.plan, tensors), reference(model.plan, tensors)
    prompts = [[1, first, 2, 3] for first in (7, 100)]
    assert compare_greedy(native, wasm, prompts, 80) <= 1
    ids = np.random.default_rng(levels).integers(0, 260, 400)
    assert np.abs(nll(wasm, ids) - nll(native, ids)).max() < 1e-4


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(model_recipes(), st.integers(0, 99))
def test_any_plan_with_float_weights_runs(recipe, seed: int) -> None:
    model = scattered(recipe, seed)
    tensors = tensors_of(model)
    ids = np.random.default_rng(seed).integers(0, recipe.vocab_size, 60)
    wasm, native = WasmEngine(model.plan, tensors), reference(model.plan, tensors)
    np.testing.assert_allclose(nll(wasm, ids), nll(native, ids), atol=2e-4)


def test_sampling_draws_the_native_engines_tokens() -> None:
    _, wasm, native = shipped_engines()
    for seed, options in enumerate([{}, {"top_k": 5}, {"top_p": 0.7}, {"top_k": 50, "top_p": 0.9}]):
        sampling = niblick.engine.Sampling(temperature=0.9, seed=seed, **options)
        drawn = [
            list(continue_tokens(each, [1, 900], sampling, max_tokens=30))
            for each in (wasm, native)
        ]
        assert drawn[0] == drawn[1]


def test_integers_that_follow_the_trellis_are_coded_as_its_symbols() -> None:
    generator = np.random.default_rng(0)
    symbols = generator.integers(-9, 10, (64, 48))
    state, levels = np.zeros(48, dtype=np.int64), np.empty_like(symbols)
    for row, part in enumerate(symbols):
        levels[row] = TRELLIS.level(part, TRELLIS.quantizer[state])
        state = TRELLIS.following[state, part & 1]
    steps = np.ones(64, np.float32)

    def bits(codes) -> tuple[object, float]:
        encoder = Encoder(new_tables())
        return code_matrix(encoder, store(codes, steps)).code, encoder.bits

    followed, own = bits(levels.astype(np.int16))
    levels[63, 0] += 1
    other, plain = bits(levels.astype(np.int16))
    assert followed is TRELLIS
    assert other is SCALAR
    assert own < plain - 0.8 * levels.size


def test_a_plan_that_the_engine_cannot_run_is_refused() -> None:
    wide = ["model.dim=8192", "model.attention.heads=64", "model.attention.kv_heads=1"]
    plan = make_plan(load_recipe("token-shift-small", wide).model)
    with pytest.raises(NiblickError, match="the engine for browsers cannot run this model"):
        flatten(plan, {})
