"""Every switch and size of a recipe can be set from the command line."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import BaseModel

from niblick.recipe import Recipe, load_recipe

# key -> a value that is valid and is not the one the recipe `token-shift` has
OTHER: dict[str, Any] = {
    "name": "other", "description": "words", "seed": 7,
    "data.corpus": "folder", "data.tokenizer": "bytes", "data.workers": 3, "data.shard_mix": [2, 4], "data.alpha": [0.8, 0.2],
    "model.vocab_size": 2048, "model.bos_id": 2, "model.dim": 256, "model.context": 512, "model.scalars": "virtual",
    "model.stack": [{"name": "blocks", "loops": 2, "layers": ["token-shift*10", "full"]}],
    "model.depth_scale": False, "model.document_mask": True, "model.document_attention": "within", "model.tied": False,
    "model.softcap": 15.0, "model.linear_init": "torch", "model.embedding.init": "overtone", "model.embedding.std": 0.01,
    "model.bigram.enabled": False, "model.bigram.buckets": 4096, "model.bigram.width": 96, "model.bigram.scale": 0.1,
    "model.smear.enabled": False, "model.residual_mix.enabled": False, "model.residual_mix.init": "phase",
    "model.skips.enabled": True, "model.skips.pop": "late", "model.attention.heads": 4, "model.attention.kv_heads": 2,
    "model.attention.qk_norm": False, "model.attention.q_gain": 1.0, "model.attention.k_gain": True,
    "model.attention.kv_shift": True, "model.attention.local_value": True, "model.attention.xsa_last": 1,
    "model.attention.xsa_layers": [4], "model.attention.rope.dims": "adaptive",
    "model.attention.rope.frequency_dims": "rotary", "model.attention.rope.base": 500.0,
    "model.attention.rope.train_length": 256, "model.value_embedding.enabled": False,
    "model.value_embedding.layers": [7, 10], "model.value_embedding.width": 32, "model.value_embedding.scale": 0.2,
    "model.value_embedding.std": 0.1, "model.token_shift.mix": 0.1, "model.mlp.width": 2.5,
    "model.mlp.activation": "relu-squared", "model.mlp.slope": 0.3, "model.sidecar.enabled": False,
    "model.sidecar.layers": [3], "model.sidecar.width": 24, "model.sidecar.kernel": 4, "model.mtp.heads": 2,
    "model.mtp.weight": 0.1,
}
NOT_OTHER = {"model.sidecar.enabled"}  # on only together with its layers


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


@pytest.mark.parametrize("key", [key for key in leaves(Recipe) if key.startswith(("name", "seed", "data", "model"))])
def test_every_switch_of_model_and_data_can_be_changed_alone(key: str) -> None:
    before = load_recipe("token-shift")
    after = load_recipe("token-shift", [f"{key}={as_toml(OTHER[key])}"])
    assert value_at(after, key) == OTHER[key]
    if key not in NOT_OTHER:
        assert value_at(before, key) != OTHER[key]
        assert after != before
