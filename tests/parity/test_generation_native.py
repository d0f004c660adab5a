"""The native engine gives the reference model's numbers for every family of plans, in any batch,
cut and threads.
"""

from __future__ import annotations

import ctypes
import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engines import engine_tensors, native, plain, quantized
from niblick import toolchain
from niblick.engine import GREEDY, Sampling, continue_batch, continue_tokens, open_engine
from niblick.engine.structures import matrix_of, unsupported
from niblick.engine.weights import Codes, decode, store
from niblick.errors import NiblickError
from niblick.evaluation.torch_engine import TorchEngine
from niblick.model import LanguageModel
from niblick.recipe import load_recipe, recipe_from_dict
from niblick.toolchain import ENGINE

CLOSE = 1e-4  # of logits that reach 30
ALL_CLOSE = 2e-4  # the worst of all tokens at all positions
SMALL = [
    "model.dim=48",
    "model.context=40",
    "model.attention.heads=4",
    "model.attention.kv_heads=2",
    "model.attention.rope.dims=6",
    "model.vocab_size=96",
]
WIDE_HEADS = ["model.dim=128", "model.attention.heads=2", "model.attention.kv_heads=2"]
PLANS = {
    "two layers": ("token-shift", SMALL),
    "token-shift": ("token-shift", SMALL),
    "token-shift, masked, wide heads": (
        "token-shift",
        [*SMALL, *WIDE_HEADS, "model.document_mask=true"],
    ),
    "depth-recurrent": ("depth-recurrent", [*SMALL, "model.attention.rope.dims=12"]),
    "sidecar": ("sidecar", [*SMALL, "model.attention.xsa_last=2"]),
    "sidecar, bigram without projection": (
        "sidecar",
        [
            *SMALL,
            'model.stack.0.layers=["full*4"]',
            "model.sidecar.layers=[2,3]",
            "model.bigram.width=48",
            "model.bigram.projection=false",
        ],
    ),
    "token-shift alone": (
        "token-shift",
        [
            *SMALL,
            'model.stack.0.layers=["token-shift*3"]',
            "model.value_embedding.enabled=false",
            "model.value_embedding.layers=[]",
        ],
    ),
    "sidecar, masked, rescaled": (
        "sidecar",
        [
            *SMALL,
            "model.document_mask=true",
            "model.attention.rope.train_length=16",
            "model.sidecar.kernel=4",
        ],
    ),
    "within documents, untied, no cap": (
        "token-shift",
        [
            *SMALL,
            "model.document_mask=true",
            "model.document_attention=within",
            "model.tied=false",
            "model.softcap=null",
            "model.residual_mix.enabled=false",
            "model.smear.enabled=false",
            "model.bigram.enabled=false",
            "model.skips.enabled=true",
            "model.attention.qk_norm=false",
            "model.attention.kv_shift=true",
            "model.mlp.width=0.5",
        ],
    ),
}


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    """The engine's library, built once into a folder of its own."""
    if not ENGINE.compiler():
        pytest.skip("needs a C compiler")
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    try:
        assert ENGINE.build()
        yield ENGINE.load()
    finally:
        if before is None:
            del os.environ["XDG_CACHE_HOME"]
        else:
            os.environ["XDG_CACHE_HOME"] = before


def made(plan: str, *, levels: int | None = 31, columns: bool = False) -> LanguageModel:
    """A model with every parameter away from its start; its matrices are quantized to `levels`
    steps either way, per row and with `columns` per column too.
    """
    name, overrides = PLANS[plan]
    values = load_recipe(name, overrides).model_dump(mode="json")
    if plan == "two layers":
        values["model"]["stack"] = [{"layers": ["token-shift", "full"]}]
        values["model"]["value_embedding"] = {"enabled": True, "layers": [1]}
    model = LanguageModel(recipe_from_dict(values).model).eval()
    generator, draw = torch.Generator().manual_seed(3), np.random.default_rng(3)
    model.quantized = {}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.15)
            if levels and parameter.dim() == 2:
                factors = 2 ** (draw.integers(-4, 4, parameter.shape[1]) / 4) if columns else None
                tensor = quantized(parameter.numpy(), levels, factors)
                parameter.copy_(torch.from_numpy(tensor.dequantize()))
                model.quantized[name] = tensor
    return model


def tokens(count: int, seed: int = 0) -> np.ndarray:
    """Random ids with a document's end now and then."""
    ids = np.random.default_rng(seed).integers(0, 96, count)
    ids[::13] = 1
    return ids


@pytest.mark.parametrize("plan", PLANS)
def test_logits_equal_the_reference_after_prompts_and_steps(library, plan):
    model = made(plan)
    fast, reference = native(model, library, threads=1), TorchEngine(model)
    for length in (1, 150):
        for engine in (fast, reference):
            engine.read(0, tokens(length))
        assert np.abs(fast.logits(0) - reference.logits(0)).max() < CLOSE
        for token in tokens(12, seed=1).tolist():
            for engine in (fast, reference):
                engine.step([token])
            assert np.abs(fast.logits(0) - reference.logits(0)).max() < CLOSE


@pytest.mark.parametrize("plan", PLANS)
def test_the_numpy_engine_gives_the_reference_logits_in_any_cut(plan):
    model = made(plan)
    many, reference = plain(model, slots=2), TorchEngine(model)
    many.read(1, tokens(7))
    for engine in (many, reference):
        engine.read(0, tokens(150))
    assert np.abs(many.logits(0) - reference.logits(0)).max() < CLOSE
    many.read(0, tokens(150)[:3])
    for token in tokens(150)[3:].tolist():
        many.step([token])
    assert np.abs(many.logits(0) - reference.logits(0)).max() < CLOSE


@pytest.mark.parametrize("context", [None, 24, 70])
@pytest.mark.parametrize("plan", ["two layers", "sidecar, masked, rescaled"])
def test_every_engine_gives_the_nats_of_the_models_distributions(library, plan, context):
    model, ids = made(plan), tokens(120)
    declared = context or model.recipe.context
    with torch.no_grad():
        state = model.empty_state(context=declared)
        logits = model(torch.from_numpy(ids)[None], state)[0][0]
    right = -torch.log_softmax(logits, dim=1).numpy()
    engines = (
        native(model, library, threads=2, context=context),
        plain(model, context=context),
        TorchEngine(model, context=context),
    )
    for engine in engines:
        engine.reset(0)
        for start in range(0, 120, 40):
            engine.advance(np.zeros(40), ids[start : start + 40], "all")
            wanted = np.repeat(np.arange(96)[None], 40, axis=0)
            part = slice(start, start + 40)
            assert np.abs(engine.nll(wanted) - right[part]).max() < ALL_CLOSE
            assert np.abs(engine.rows(40) - logits[part].numpy()).max() < ALL_CLOSE
            assert np.array_equal(engine.nll(wanted[:, 5:6])[:, 0], engine.nll(wanted)[:, 5])


@pytest.mark.parametrize("plan", ["sidecar, masked, rescaled", "within documents, untied, no cap"])
def test_slots_side_by_side_score_to_the_bit_what_each_scores_alone(library, plan):
    model = made(plan)
    many = native(model, library, slots=3, threads=2)
    alone = native(model, library, threads=1)
    texts = [tokens(20, seed=seed) for seed in range(3)]
    targets = tokens(60, seed=9)[:, None]
    many.advance(np.repeat(np.arange(3), 20), np.concatenate(texts), "all")
    together = many.nll(targets).reshape(3, 20)
    for slot, text in enumerate(texts):
        alone.reset(0)
        for at in range(0, 20, 5):
            alone.advance(np.zeros(5), text[at : at + 5], "all")
            wanted = targets[20 * slot + at : 20 * slot + at + 5]
            assert np.array_equal(alone.nll(wanted)[:, 0], together[slot, at : at + 5])
        assert np.array_equal(alone.logits(0), many.logits(slot))


@pytest.fixture(scope="session", params=ENGINE.variants, ids=lambda variant: variant.name)
def variant(library, request, tmp_path_factory):
    """The library as wheels carry it, for each kind of processor that this one can stand for."""
    target = tmp_path_factory.mktemp("variant") / "engine.so"
    toolchain.PROCESSOR.build()
    toolchain.processor_features.cache_clear()
    if not request.param.needs <= toolchain.processor_features():
        pytest.skip(f"this processor has no {request.param.name}")
    compiler = ENGINE.compiler()
    if not ENGINE.compile(target, compiler, ("-O1", *request.param.options_for(compiler))):
        pytest.skip(f"this compiler does not know {request.param.name}")
    return ctypes.CDLL(str(target))


@pytest.mark.parametrize("levels", [7, 31, 127, 9000, None])
def test_every_variant_gives_the_logits_of_the_numpy_engine(variant, levels):
    model = made("sidecar", levels=levels, columns=levels == 9000)
    fast = native(model, variant, threads=1)
    reference = open_engine(model.plan, engine_tensors(model), kind="numpy")
    for engine in (fast, reference):
        engine.read(0, tokens(90))
    assert np.abs(fast.logits(0) - reference.logits(0)).max() < CLOSE
    prompt = tokens(90)
    fast.read(0, prompt[:70])
    for token in prompt[70:].tolist():
        fast.step([token])
    assert np.abs(fast.logits(0) - reference.logits(0)).max() < CLOSE


@pytest.mark.parametrize("levels", [7, 31, 127, None])
def test_every_width_of_codes_gives_the_reference_logits(library, levels):
    model = made("token-shift", levels=levels)
    fast, reference = native(model, library, threads=1), TorchEngine(model)
    for engine in (fast, reference):
        engine.read(0, tokens(90))
    assert set(fast.bits.values()) == {{7: 4, 31: 6, 127: 8, None: 24}[levels]}
    assert np.abs(fast.logits(0) - reference.logits(0)).max() < CLOSE


def product(library: ctypes.CDLL, codes: Codes, x: np.ndarray) -> np.ndarray:
    """The engine's product of a matrix with each row of `x`."""
    out, scratch = (
        np.zeros((len(x), codes.rows), dtype=np.float32),
        np.zeros(1 << 18, dtype=np.float32),
    )
    wide = np.pad(x, ((0, 0), (0, 64)))
    matrix, zero = matrix_of(codes), ctypes.c_float(0)
    at_x, at_out, at_scratch = (ctypes.c_void_p(a.ctypes.data) for a in (wide, out, scratch))
    strides = [ctypes.c_int64(a.shape[1]) for a in (wide, out)]
    library.nb_product(
        ctypes.byref(matrix),
        at_x,
        strides[0],
        at_out,
        strides[1],
        len(x),
        0,
        codes.rows,
        0,
        zero,
        at_scratch,
    )
    return out


def _sums_integers() -> bool:
    """Whether the build that is loaded does; others sum floats, in an order of their own."""
    toolchain.processor_features.cache_clear()
    return ENGINE._chosen() is toolchain.AVX512


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 70), st.integers(1, 200), st.integers(1, 9)),
    st.floats(0.1, 300),
    st.floats(0, 0.02),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_few_large_codes_beside_small_ones_change_no_bit_of_a_sum_of_integers(
    library, shape, spread, share, columns, seed
):
    rows, cols, count = shape
    draw = np.random.default_rng(seed)
    codes = np.rint(draw.standard_normal((rows, cols)) * spread)
    codes[draw.random((rows, cols)) < share] *= 1000
    codes = np.clip(codes, -200_000, 200_000).astype(np.int32)
    steps, x = (draw.random(n).astype(np.float32) for n in (rows, (count, cols)))
    factors = draw.random(cols).astype(np.float32) if columns else None
    small, large = (store(codes, steps, factors, tails=tails) for tails in (True, False))
    assert small.bits <= large.bits
    assert np.array_equal(decode(small), decode(large))
    found, right = product(library, small, x), product(library, large, x)
    if _sums_integers():
        assert np.array_equal(found, right)
    weights = np.abs(decode(large)).astype(np.float64)
    assert (np.abs(found - right) <= 2e-6 * (np.abs(x).astype(np.float64) @ weights.T)).all()


@pytest.mark.parametrize("bits", [2, 4, 6, 8, 10, 12, 16, 24])
def test_products_and_tails_of_every_width_are_those_of_the_weights(variant, library, bits):
    draw, most = np.random.default_rng(bits), (1 << (bits - 1)) - 1
    codes = draw.integers(-most, most + 1, (48, 130)).astype(np.int32)
    if bits in (2, 8):
        codes[[1, 17, 40], [5, 129, 0]] = 30000, -32768, 2000
    found, x = (
        store(codes, draw.random(48).astype(np.float32)),
        draw.standard_normal((5, 130)).astype(np.float32),
    )
    assert found.bits == bits
    assert (found.tail is not None) == (bits in (2, 8))
    right = x @ decode(found).T.astype(np.float64)
    for made_by in (library, variant):
        assert np.abs(product(made_by, found, x) - right).max() < 2e-6 * np.abs(right).max()


def test_steps_per_column_give_the_reference_logits(library):
    model = made("token-shift", columns=True)
    fast, reference = native(model, library, threads=1), TorchEngine(model)
    for engine in (fast, reference):
        engine.read(0, tokens(90))
    assert max(fast.bits.values()) <= 8
    assert np.abs(fast.logits(0) - reference.logits(0)).max() < CLOSE


@pytest.mark.parametrize("plan", PLANS)
def test_cuts_batches_and_threads_change_no_bit(library, plan):
    model = made(plan)
    prompts = [tokens(count, seed=count) for count in (3, 70, 20)]
    many, one = (native(model, library, slots=3, threads=2), native(model, library, threads=1))
    for slot, prompt in enumerate(prompts):
        many.read(slot, prompt)
    for token in range(5, 30):
        many.step([token, token + 1, token + 2])
    for slot, prompt in enumerate(prompts):
        one.read(0, prompt[:2])
        for token in [*prompt[2:].tolist(), *range(5 + slot, 30 + slot)]:
            one.step([token])
        assert np.array_equal(many.logits(slot), one.logits(0))


def test_a_slot_forgets_its_last_text_when_it_reads_a_new_prompt(library):
    model = made("sidecar")
    used, fresh = native(model, library, threads=1), native(model, library, threads=1)
    used.read(0, tokens(100, seed=8))
    for engine in (used, fresh):
        engine.read(0, tokens(9))
    assert np.array_equal(used.logits(0), fresh.logits(0))


@pytest.mark.parametrize(
    "sampling",
    [
        GREEDY,
        Sampling(seed=-1),
        Sampling(temperature=0.6, top_k=7, seed=4),
        Sampling(top_p=0.8, seed=2**63),
        Sampling(temperature=2.0, top_k=40, top_p=0.5),
        Sampling(top_k=1),
        Sampling(top_p=1e-6),
    ],
)
def test_the_library_draws_the_tokens_that_the_reference_draws(library, sampling):
    model = made("token-shift")
    found = [
        list(continue_tokens(engine, [1, 5], sampling, max_tokens=60, vocab=90))
        for engine in (native(model, library, threads=1), TorchEngine(model))
    ]
    assert found[0] == found[1]
    assert max(found[0]) < 90


def test_greedy_text_of_a_thousand_tokens_is_the_reference_text(library):
    model = made("two layers", levels=None)
    fast, reference = native(model, library, threads=1), TorchEngine(model)
    for engine in (fast, reference):
        engine.read(0, [1])
    for _ in range(1000):
        best, second = np.sort(reference.logits(0))[::-1][:2]
        token = fast.choose(0, GREEDY, 0)
        if token != reference.choose(0, GREEDY, 0):
            assert best - second < 1e-3
            return
        fast.step([token])
        reference.step([token])


def test_a_batch_gives_what_its_prompts_give_alone_in_the_engine(library):
    model = made("depth-recurrent")
    prompts = [[1, 9], [1, 50, 60], [1]]
    engine = native(model, library, slots=3, threads=1)
    batch = continue_batch(engine, prompts, Sampling(seed=5), max_tokens=10)
    alone = [
        list(continue_tokens(engine, prompt, Sampling(seed=5 + i), max_tokens=10))
        for i, prompt in enumerate(prompts)
    ]
    assert batch == alone


def test_state_is_the_plans_in_sixteen_bits_and_a_step_per_key_and_value(library):
    model = LanguageModel(load_recipe("depth-recurrent").model)
    half = model.plan.decode_state_bytes("bfloat16")
    steps = 2 * 4 * half // (2 * model.recipe.head_dim) // 2
    assert native(model, library, threads=1).state_bytes == half + steps


def test_weights_that_packing_wrote_take_no_more_bits_than_their_codes(library):
    engine = native(made("depth-recurrent", levels=31), library, threads=1)
    assert set(engine.bits.values()) == {6}


def test_a_model_the_native_engine_cannot_run_says_why_and_numpy_runs_it(library):
    model = LanguageModel(load_recipe("token-shift", [*SMALL, "model.sidecar.width=5000"]).model)
    tensors = engine_tensors(model)
    assert "5000" in unsupported(model.plan)
    assert open_engine(model.plan, tensors, build="now").name == "numpy"
    with pytest.raises(NiblickError, match="5000"):
        open_engine(model.plan, tensors, kind="native")
    model = made("token-shift")
    assert open_engine(model.plan, engine_tensors(model), build="never").name == "native"
    assert open_engine(model.plan, engine_tensors(model), kind="numpy").name == "numpy"
