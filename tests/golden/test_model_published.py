"""The three published models at full size: parameter counts, names and shapes, written out from the
spec.
"""

from __future__ import annotations

import pytest
import torch

from niblick.model import LanguageModel
from niblick.plan import Plan, make_plan
from niblick.recipe import load_recipe

Shapes = dict[str, tuple[int, ...]]
COUNTS = {"token-shift": 26_999_322, "depth-recurrent": 24_455_688, "sidecar": 26_823_765}


def plan(name: str) -> Plan:
    return make_plan(load_recipe(name).model)


def attention(prefix: str, dim: int, kv: int) -> Shapes:
    sides = {"c_q": (dim, dim), "c_k": (kv, dim), "c_v": (kv, dim), "proj": (dim, dim)}
    return {f"{prefix}.attn.{name}.weight": shape for name, shape in sides.items()}


def mlp(prefix: str, dim: int, hidden: int) -> Shapes:
    return {f"{prefix}.mlp.fc.weight": (hidden, dim), f"{prefix}.mlp.proj.weight": (dim, hidden)}


def scalars(prefix: str, dim: int) -> Shapes:
    return {
        f"{prefix}.attn_scale": (dim,),
        f"{prefix}.mlp_scale": (dim,),
        f"{prefix}.resid_mix": (2, dim),
    }


def embeddings(width: int) -> Shapes:
    return {
        "tok_emb.weight": (1024, 512),
        "bigram.embed.weight": (2048, width),
        "bigram.proj.weight": (512, width),
        "bigram.scale": (),
        "smear.gate": (512,),
    }


def token_shift() -> Shapes:
    found = embeddings(128)
    found |= {"ve_embed.weight": (1024, 128), "ve_proj.weight": (256, 128), "ve_scales.10": (1,)}
    for i in range(11):
        block = f"blocks.{i}"
        found |= scalars(block, 512) | mlp(block, 512, 1536)
        if i in (4, 7, 10):
            found |= attention(block, 512, 256) | {f"{block}.attn.q_gain": (8,)}
        else:
            found |= {f"{block}.mixer.{name}": (512,) for name in ("mix_r", "mix_k")}
            found |= {f"{block}.mixer.{name}.weight": (512, 512) for name in ("W_r", "W_k", "W_v")}
    return found


def depth_recurrent() -> Shapes:
    found: Shapes = {"tok_emb.weight": (1024, 768), "skip_weights": (11, 768)}
    for block in ("entry_blocks.0", *(f"shared_blocks.{i}" for i in range(4)), "exit_blocks.0"):
        found |= attention(block, 768, 256) | mlp(block, 768, 1536)
    for i in range(22):
        found |= scalars(f"vlayers.{i}", 768) | {f"vlayers.{i}.q_gain": (12,)}
    return found


def sidecar() -> Shapes:
    found = embeddings(96) | {"skip_weights": (5, 512), "shared_sparse_scale": (3, 512)}
    found |= {f"shared_sparse.{name}.weight": (48, 512) for name in ("gate", "value")}
    found |= {
        "shared_sparse.proj.weight": (512, 48),
        "shared_sparse.local.weight": (48, 1, 3),
        "shared_sparse.site_gate.weight": (3, 48),
    }
    for i in range(11):
        block = f"blocks.{i}"
        found |= scalars(block, 512) | mlp(block, 512, 1536) | attention(block, 512, 256)
        found |= {f"{block}.attn.q_gain": (8,), f"{block}.attn.local_v_mix": (8,)}
        found |= {f"{block}.attn.{name}": (4,) for name in ("k_gain", "k_shift_mix", "v_shift_mix")}
    return found


NAMES = {"token-shift": token_shift, "depth-recurrent": depth_recurrent, "sidecar": sidecar}


@pytest.mark.parametrize("name", COUNTS)
def test_the_published_parameter_count_is_met(name: str) -> None:
    assert plan(name).parameter_count == COUNTS[name]


@pytest.mark.parametrize("name", NAMES)
def test_names_and_shapes_are_the_published_ones(name: str) -> None:
    assert {p.name: p.shape for p in plan(name).parameters} == NAMES[name]()


@pytest.mark.parametrize("name", NAMES)
def test_the_built_model_has_the_published_state_dict(name: str) -> None:
    with torch.device("meta"):
        model = LanguageModel(load_recipe(name).model, seed=None)
    assert {key: tuple(t.shape) for key, t in model.state_dict().items()} == NAMES[name]()


def test_token_shift_attends_in_layers_4_7_and_10() -> None:
    layers = plan("token-shift").layers
    assert {layer.index: layer.span for layer in layers if layer.mixer != "token-shift"} == {
        4: 129,
        7: 129,
        10: 1024,
    }
    assert [layer.index for layer in layers if layer.xsa] == [7, 10]
    assert [layer.index for layer in layers if layer.value_embedding] == [10]
    assert [layer.scale for layer in layers if layer.index in (0, 4)] == [1.0, 5**-0.5]


def test_depth_recurrent_visits_six_blocks_in_22_virtual_layers() -> None:
    found = plan("depth-recurrent")
    middle = [f"shared_blocks.{i}" for i in range(4)] * 5
    assert [layer.block for layer in found.layers] == ["entry_blocks.0", *middle, "exit_blocks.0"]
    assert found.weight_blocks == 6 and found.visits()["shared_blocks.2"] == 5
    assert [layer.index for layer in found.layers if layer.push] == list(range(11))
    assert [layer.pop for layer in found.layers[11:]] == list(range(11))
    assert {layer.scale for layer in found.layers} == {1.0}


def test_sidecar_has_three_sites_and_five_early_skips() -> None:
    layers = plan("sidecar").layers
    assert {
        layer.index: layer.sidecar_site for layer in layers if layer.sidecar_site is not None
    } == {8: 0, 9: 1, 10: 2}
    assert [layer.index for layer in layers if layer.push] == [0, 1, 2, 3, 4]
    assert {layer.index: layer.pop for layer in layers if layer.pop is not None} == {
        5: 0,
        6: 1,
        7: 2,
        8: 3,
        9: 4,
    }
    assert not any(layer.xsa for layer in layers)
    assert [round(layer.scale**-2) for layer in layers] == list(range(1, 12))


def test_published_training_settings_are_the_recipes() -> None:
    shift, loops, side = (load_recipe(name).training for name in COUNTS)
    assert (shift.muon.lr, shift.muon.momentum, shift.muon.momentum_warmup) == (
        0.04,
        (0.92, 0.99),
        "1500 steps",
    )
    assert (shift.adam.embedding_lr, shift.adam.scalar_lr, shift.clip) == (0.05, 0.04, 0.3)
    assert (shift.batch_tokens, shift.schedule.warmdown, shift.averaging.decay) == (
        524_288,
        "3500 steps",
        0.997,
    )
    assert (shift.qat.enabled, shift.qat.start, shift.compile_warmup_steps) == ("auto", 0.15, 20)
    assert (loops.muon.lr, loops.muon.momentum, loops.muon.momentum_warmup) == (
        0.03,
        (0.85, 0.95),
        "500 steps",
    )
    assert (loops.muon.weight_decay, loops.adam.weight_decay, loops.clip) == (0.02, 0.01, 0)
    assert (loops.adam.embedding_lr, loops.adam.scalar_lr, loops.schedule.warmdown) == (
        0.04,
        0.03,
        "2500 steps",
    )
    assert (side.muon.lr, side.adam.embedding_lr, side.adam.scalar_lr) == (0.025, 0.035, 0.025)
    assert (side.sequence_length, side.batch_tokens, side.schedule.warmdown) == (
        2048,
        786_432,
        "3000 steps",
    )
