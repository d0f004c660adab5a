"""Reads the published numbers kept in tests/golden/data, and states each as a model section of this
package.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).parent.parent / "golden" / "data"
MODELS = ("token_shift", "depth_recurrent", "sidecar", "sidecar_long")


def read(name: str) -> tuple[dict[str, Any], dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """(model section, weights, tokens (B, T), logits (B, T, V)) of one published file."""
    with np.load(FOLDER / f"{name}.npz") as file:
        config = json.loads(str(file["config"]))
        weights = {
            key.removeprefix("weight/"): file[key].astype(np.float32)
            for key in file.files
            if key.startswith("weight/")
        }
        return section(name, config), weights, file["tokens"].astype(np.int64), file["logits"]


def section(name: str, config: dict[str, Any]) -> dict[str, Any]:
    """The model section that a published configuration amounts to."""
    rope = {"dims": config["rope_dims"], "frequency_dims": config["rope_frequency_dim"]}
    attention: dict[str, Any] = {
        "heads": config["heads"],
        "kv_heads": config["kv_heads"],
        "rope": rope,
    }
    common = {
        "vocab_size": config["vocab"],
        "dim": config["model_dim"],
        "context": config.get("train_length", 1024),
        "document_mask": False,
        "attention": attention,
    }
    if name.startswith("depth_recurrent"):
        return common | _depth_recurrent(config)
    common["bigram"] = {
        "enabled": True,
        "buckets": config["bigram_buckets"],
        "width": config["bigram_dim"],
    }
    common["smear"] = {"enabled": True}
    attention["xsa_layers"] = config["xsa_layers"]
    if name.startswith("token_shift"):
        return common | _token_shift(config)
    rope["train_length"] = config["train_length"]
    if config.get("rope_dims_rule") == "adaptive":
        rope["dims"] = "adaptive"
    attention.update(k_gain=True, kv_shift=True, local_value=True)
    return common | _sidecar(config)


def _token_shift(config: dict[str, Any]) -> dict[str, Any]:
    layers = ["token-shift"] * config["layers"]
    for i in config["attention_layers"]:
        layers[i] = "full" if i in config["full_layers"] else f"window:{config['window']}"
    embedded = [i for i in config["value_embedding_layers"] if i in config["attention_layers"]]
    return {
        "stack": [{"layers": layers}],
        "value_embedding": {
            "enabled": True,
            "layers": embedded,
            "width": config["value_embedding_dim"],
        },
    }


def _depth_recurrent(config: dict[str, Any]) -> dict[str, Any]:
    return {
        "stack": [
            {"name": "entry_blocks", "layers": [f"full*{config['entry']}"]},
            {
                "name": "shared_blocks",
                "loops": config["loops"],
                "layers": [f"full*{config['shared']}"],
            },
            {"name": "exit_blocks", "layers": [f"full*{config['exit']}"]},
        ],
        "scalars": "virtual",
        "depth_scale": False,
        "skips": {"enabled": True, "pop": "late"},
        "mlp": {"width": config["mlp_mult"], "activation": "relu-squared"},
    }


def _sidecar(config: dict[str, Any]) -> dict[str, Any]:
    return {
        "stack": [{"layers": [f"full*{config['layers']}"]}],
        "skips": {"enabled": True},
        "mlp": {"width": config["mlp_mult"], "activation": "relu-squared"},
        "sidecar": {
            "enabled": True,
            "layers": config["sidecar_layers"],
            "width": config["sidecar_dim"],
        },
    }
