"""Every switch and size of a recipe can be set from the command line."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import BaseModel

from niblick.recipe import Recipe, load_recipe

# key -> a value that is valid and is not the one the recipe `token-shift` has
OTHER: dict[str, Any] = {
    "name": "other",
    "description": "words",
    "seed": 7,
    "data.corpus": "folder",
    "data.tokenizer": "bytes",
    "data.development": True,
    "data.share": 0.5,
    "data.rows": "documents",
    "data.workers": 3,
    "data.shard_mix": [2, 4],
    "data.alpha": [0.8, 0.2],
    "model.members": 2,
    "model.shared_tables": True,
    "model.vocab_size": 2048,
    "model.bos_id": 2,
    "model.dim": 256,
    "model.context": 512,
    "model.scalars": "virtual",
    "model.stack": [{"name": "blocks", "loops": 2, "layers": ["token-shift*10", "full"]}],
    "model.depth_scale": False,
    "model.document_mask": True,
    "model.document_attention": "within",
    "model.tied": False,
    "model.softcap": 15.0,
    "model.linear_init": "torch",
    "model.embedding.init": "overtone",
    "model.embedding.std": 0.01,
    "model.bigram.enabled": False,
    "model.bigram.buckets": 4096,
    "model.bigram.width": 96,
    "model.bigram.projection": True,
    "model.bigram.scale": 0.1,
    "model.smear.enabled": False,
    "model.residual_mix.enabled": False,
    "model.residual_mix.init": "phase",
    "model.skips.enabled": True,
    "model.skips.pop": "late",
    "model.attention.heads": 4,
    "model.attention.kv_heads": 2,
    "model.attention.qk_norm": False,
    "model.attention.q_gain": 1.0,
    "model.attention.k_gain": True,
    "model.attention.kv_shift": True,
    "model.attention.local_value": True,
    "model.attention.xsa_last": 1,
    "model.attention.xsa_layers": [4],
    "model.attention.rope.dims": "adaptive",
    "model.attention.rope.frequency_dims": "rotary",
    "model.attention.rope.base": 500.0,
    "model.attention.rope.train_length": 256,
    "model.value_embedding.enabled": False,
    "model.value_embedding.layers": [7, 10],
    "model.value_embedding.width": 32,
    "model.value_embedding.scale": 0.2,
    "model.value_embedding.std": 0.1,
    "model.token_shift.mix": 0.1,
    "model.mlp.width": 2.5,
    "model.mlp.activation": "relu-squared",
    "model.mlp.slope": 0.3,
    "model.sidecar.enabled": False,
    "model.sidecar.layers": [3],
    "model.sidecar.width": 24,
    "model.sidecar.kernel": 4,
    "model.mtp.heads": 2,
    "model.mtp.weight": 0.1,
    "training.init_from": "pocket",
    "training.duration": "3500 steps",
    "training.max_passes": 20.0,
    "training.sequence_length": 512,
    "training.batch_tokens": 65536,
    "training.micro_batch_tokens": 8192,
    "training.reduce": "bf16",
    "training.precision": "bf16",
    "training.compile": "on",
    "training.compile_warmup_steps": 2,
    "training.clip": 1.0,
    "training.threads": 2,
    "training.checkpoint_every": "5s",
    "training.optimizer.matrix": "adam",
    "training.optimizer.embedding": "other",
    "training.optimizer.control": "other",
    "training.muon.lr": 0.01,
    "training.muon.momentum": [0.8, 0.9],
    "training.muon.momentum_warmup": 0.5,
    "training.muon.nesterov": False,
    "training.muon.newton_schulz_steps": 4,
    "training.muon.neuron_beta": 0.9,
    "training.muon.weight_decay": 0.1,
    "training.muon.momentum_form": "sum",
    "training.muon.decay_after_update": True,
    "training.muon.include": ["shared_sparse.site_gate.weight"],
    "training.adam.embedding_lr": 0.01,
    "training.adam.scalar_lr": 0.01,
    "training.adam.betas": [0.8, 0.9],
    "training.adam.eps": 1e-6,
    "training.adam.weight_decay": 0.1,
    "training.adam.decoupled": False,
    "training.adam.head_lr": 0.008,
    "training.schedule.kind": "other",
    "training.schedule.warmup": "10 steps",
    "training.schedule.warmdown": 0.25,
    "training.schedule.final": 0.1,
    "training.averaging.kind": "swa",
    "training.averaging.decay": 0.9,
    "training.averaging.warmup": False,
    "training.averaging.every": 10,
    "training.averaging.start": 0.3,
    "training.averaging.width": 0.2,
    "training.qat.enabled": True,
    "training.qat.start": 0.3,
    "training.qat.min_passes": 12.0,
    "training.dropout.token": 0.1,
    "training.dropout.bigram": 0.3,
    "training.dropout.value_embedding": 0.5,
    "training.validation.every": 0.5,
    "training.validation.tokens": 4096,
    "artifact.max_bytes": 1_000_000,
    "artifact.matrix_bits": 5,
    "artifact.embedding_bits": 6,
    "evaluation.mode": "sliding",
    "evaluation.context": 512,
    "evaluation.stride": 32,
    "evaluation.batch_tokens": 4096,
}
# on only together with its layers, off only with a table as wide as the model
NOT_OTHER = {"model.sidecar.enabled", "model.bigram.projection"}


def leaves(section: type[BaseModel], prefix: str = "") -> list[str]:
    found = []
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found += leaves(kind, f"{prefix}{name}.")
        else:
            found.append(prefix + name)
    return found


def value_at(recipe: Recipe, key: str) -> Any:
    value: Any = recipe.model_dump(mode="json")
    for part in key.split("."):
        value = value[part]
    return value


def as_toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k} = {as_toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(as_toml(v) for v in value) + "]"
    return json.dumps("null" if value is None else value)


@pytest.mark.parametrize("key", leaves(Recipe))
def test_every_leaf_accepts_its_own_value_from_the_command_line(key: str) -> None:
    recipe = load_recipe("token-shift")
    assert load_recipe("token-shift", [f"{key}={as_toml(value_at(recipe, key))}"]) == recipe


def test_every_switch_of_data_model_and_training_is_among_those_tried() -> None:
    assert {key for key in leaves(Recipe) if key.startswith(("data", "model", "training"))} <= set(
        OTHER
    )


@pytest.mark.parametrize("key", OTHER)
def test_a_switch_can_be_changed_alone_from_the_command_line(key: str) -> None:
    before = load_recipe("token-shift")
    after = load_recipe("token-shift", [f"{key}={as_toml(OTHER[key])}"])
    assert value_at(after, key) == OTHER[key]
    if key not in NOT_OTHER:
        assert value_at(before, key) != OTHER[key]
        assert after != before
