"""A model as a Hugging Face folder, and back: configuration, weights, tokenizer, code and card.

The folder brings its own code, which imports transformers and torch only. Nothing in a folder that
is read back is run or unpickled.
"""

from __future__ import annotations

import base64
import json
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from niblick.artifact.checkpoint import Checkpoint, read_floats
from niblick.codecs.base import exported_tensors
from niblick.codecs.quantized import QuantizedTensor
from niblick.components import MIXERS
from niblick.errors import ArtifactError, NiblickError
from niblick.exchange.hf.card import model_card
from niblick.exchange.hf.fast_tokenizer import fast_tokenizer
from niblick.exchange.target import new_folder
from niblick.facade import Model
from niblick.files import parse_json
from niblick.limits import cut
from niblick.plan import Plan, make_plan, member_prefixes, of_member
from niblick.recipe import Recipe, recipe_from_dict, stored_values
from niblick.text.tokenizer import load_tokenizer

CODE = ("configuration_niblick.py", "layers_niblick.py", "modeling_niblick.py")
# What reading a folder that is no model raises.
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, NiblickError)
_KNOWN = ("token-shift", "window", "full")


def export_hf(model: Model, out: Path, *, card: dict[str, Any] | None = None) -> int:
    """Write `model` as the folder `out`, in place of what is there; the bytes of its weights.

    Raises `NiblickError` where a mixer or the tokenizer is a plugin's.
    """
    unknown = {layer.mixer for layer in model.plan.layers} - set(_KNOWN)
    if unknown:
        raise NiblickError(f"mixer {min(unknown)!r} has no form in transformers")
    tokenizer = model.tokenizer
    fast = fast_tokenizer(tokenizer)
    weights = save(_arrays(model), {"format": "pt"})
    names = [fast.id_to_token(i) for i in range(tokenizer.vocab_size)]
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": names[tokenizer.bos_id],
        "eos_token": names[tokenizer.bos_id],  # a document ends where the next one begins
        **{f"{k}_token": n for k, n in (("pad", "<pad>"), ("unk", "<unk>")) if n in names},
        "model_max_length": model.recipe.model.context,
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": True,
        "model_input_names": ["input_ids", "attention_mask"],
        "padding_side": "left",
    }
    settings.setdefault("pad_token", settings["bos_token"])
    generation = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.bos_id}
    generation["pad_token_id"] = names.index(settings["pad_token"])
    files = {
        "config.json": _text(_config(model)),
        "generation_config.json": _text(generation),
        "model.safetensors": weights,
        "tokenizer.json": fast.to_str(pretty=True).encode(),
        "tokenizer_config.json": _text(settings),
        "README.md": model_card(model, card).encode(),
    }
    for name in CODE:
        files[name] = (resources.files(__name__) / name).read_bytes()
    with new_folder(out) as folder:
        for name, content in files.items():
            (folder / name).write_bytes(content)
    return len(weights)


def _text(values: dict[str, Any]) -> bytes:
    return json.dumps(values, indent=1).encode() + b"\n"


def _arrays(model: Model) -> dict[str, Any]:
    """The tensors; of tables that an ensemble's members share, each gets a copy."""
    found = {
        name: t.dequantize() if isinstance(t, QuantizedTensor) else np.require(t, np.float32, "C")
        for name, t in model.tensors.items()
    }
    members = len(model.plan.members)
    return {
        prefix + name: array.copy() if members else array
        for i, prefix in enumerate(member_prefixes(members))
        for name, array in (of_member(found, i) if members else found).items()
    }


def _unshared(recipe: Recipe) -> Recipe:
    """The recipe of the model that the folder holds: each member has tables of its own."""
    own = recipe.model.model_copy(update={"shared_tables": False})
    return recipe.model_copy(update={"model": own})


def _config(model: Model) -> dict[str, Any]:
    bos = model.tokenizer.bos_id
    return {
        "model_type": "niblick",
        "architectures": ["NiblickForCausalLM"],
        "auto_map": {
            "AutoConfig": "configuration_niblick.NiblickConfig",
            "AutoModelForCausalLM": "modeling_niblick.NiblickForCausalLM",
        },
        "dtype": "float32",
        "tie_word_embeddings": False,
        "bos_token_id": bos,
        "eos_token_id": bos,
        "model": model.plan.model.model_dump(mode="json"),
        "layers": _layers(model.plan),
        "recipe": stored_values(_unshared(model.recipe)),
        "tokenizer": base64.b64encode(model.tokenizer.to_bytes()).decode(),
    }


def _layers(plan: Plan) -> list[dict[str, Any]]:
    """The virtual layers; span 0 is the declared context."""
    found = []
    for layer in plan.layers:
        span = layer.span if MIXERS[layer.mixer].windowed else 0
        found.append(asdict(layer) | {"span": span})
    return found


def import_hf(folder: Path) -> Checkpoint:
    """The checkpoint in a folder that `export_hf` or `save_pretrained` wrote.

    Raises `ArtifactError` for a folder of another model, or weights that do not fit its recipe.
    """
    try:
        config = parse_json((folder / "config.json").read_bytes())
        if not isinstance(config, dict) or config.get("model_type") != "niblick":
            raise ArtifactError("its config.json is not of a niblick model")
        recipe = recipe_from_dict(config["recipe"])
        tokenizer = load_tokenizer(base64.b64decode(config["tokenizer"], validate=True))
        floats = read_floats(folder / "model.safetensors")
    except _UNREADABLE as error:
        said = cut(error.strerror if isinstance(error, OSError) else error, 120)
        raise ArtifactError(f"{str(folder)!r} cannot be read as a model: {said}") from None
    checked = exported_tensors(floats, make_plan(recipe.model))
    return Checkpoint(dict(checked), recipe, tokenizer, {"imported_from": folder.name})
