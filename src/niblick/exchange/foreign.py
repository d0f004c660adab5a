"""Foreign checkpoints: a published state dict becomes a checkpoint of this package with an inferred
recipe.

Sizes come from the tensors. What tensors cannot tell (windows, XSA layers, rotary width, softcap,
context) takes the published value of systems.md sections 1-3 unless an override says otherwise;
document masking is off, as published.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from niblick.artifact.checkpoint import Checkpoint
from niblick.codecs.base import exported_tensors
from niblick.errors import ArtifactError
from niblick.exchange.statedict import read_state_dict
from niblick.plan import make_plan
from niblick.recipe import Recipe, load_recipe, recipe_from_dict
from niblick.registry import Registry
from niblick.text.tokenizer import CHALLENGE, Tokenizer, load_tokenizer

FAMILIES: Registry[Callable[[Shapes], dict[str, Any]]] = Registry("published model")
_PUBLISHED_WINDOW = 128


@dataclass(frozen=True)
class Shapes:
    """Shapes of a state dict by name, asked for by the inference."""

    by_name: dict[str, tuple[int, ...]]

    def need(self, name: str, dims: int) -> tuple[int, ...]:
        """The shape of a tensor that the family always has, of `dims` axes none of which is
        empty.
        """
        shape = self.by_name.get(name)
        if shape is None:
            raise ArtifactError(f"tensor {name!r} is missing from the state dict")
        if len(shape) != dims or 0 in shape:
            raise ArtifactError(f"tensor {name!r} has shape {shape}; {dims} axes were expected")
        return shape

    def count(self, prefix: str) -> int:
        """How many blocks `prefix.0`, `prefix.1`, ... there are; a gap in the numbers is an
        error.
        """
        found = sorted(self._numbers(prefix))
        if not found or found != list(range(len(found))):
            raise ArtifactError(f"tensors {prefix}.N count {found}, not 0, 1, 2, ...")
        return len(found)

    def _numbers(self, prefix: str) -> set[int]:
        matches = (
            re.match(rf"{re.escape(prefix)}\.([0-9]{{1,4}})\.", name) for name in self.by_name
        )
        return {int(match[1]) for match in matches if match}

    def has(self, prefix: str) -> bool:
        """Whether any tensor's name begins with `prefix`."""
        return any(name.startswith(prefix) for name in self.by_name)


def import_state_dict(
    path: Path, family: str, *, tokenizer: Tokenizer | None = None, overrides: Sequence[str] = ()
) -> Checkpoint:
    """Read the published state dict at `path` as one of `FAMILIES`, with `key=value` recipe
    overrides.

    `tokenizer` defaults to the challenge's at V = 1024. Raises `ArtifactError` naming the first
    tensor that is missing, extra or misshapen.
    """
    tensors = {
        name: t for name, t in read_state_dict(path).items() if not name.startswith("mtp_heads.")
    }
    recipe = infer_recipe(tensors, family, overrides)
    attends = {layer.index for layer in make_plan(recipe.model).layers if layer.span}
    kept = {name: t for name, t in tensors.items() if not _unused(name, attends)}
    checked = exported_tensors(kept, make_plan(recipe.model))
    if tokenizer is None and recipe.model.vocab_size == 1024:
        tokenizer = load_tokenizer(CHALLENGE)
    if tokenizer is not None and tokenizer.vocab_size != recipe.model.vocab_size:
        raise ArtifactError(
            f"the tokenizer has {tokenizer.vocab_size} pieces, the model {recipe.model.vocab_size};"
            " name the tokenizer it was trained with"
        )
    return Checkpoint(
        checked, recipe, tokenizer, {"imported_as": family, "imported_from": path.name}
    )


def infer_recipe(tensors: dict[str, Tensor], family: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe whose model has the sizes of `tensors`, after `overrides`."""
    shapes = Shapes({name: tuple(tensor.shape) for name, tensor in tensors.items()})
    infer = FAMILIES[family]
    values = load_recipe(family).model_dump(mode="json")
    vocabulary, dim = shapes.need("tok_emb.weight", 2)
    model = values["model"]
    model.update(vocab_size=vocabulary, dim=dim, document_mask=False)
    _merge(model, infer(shapes))
    return recipe_from_dict(values, origin=f"inferred {family} recipe", overrides=overrides)


def _unused(name: str, attends: Iterable[int]) -> bool:
    """A value-embedding scale of a layer that has no attention to use it (the published model holds
    one).
    """
    match = re.fullmatch(r"ve_scales\.([0-9]{1,4})", name)
    return match is not None and int(match[1]) not in set(attends)


def _merge(target: dict[str, Any], changes: dict[str, Any]) -> None:
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(target.get(key), dict):
            _merge(target[key], value)
        else:
            target[key] = value


def _heads(shapes: Shapes, gain: str, key: str) -> dict[str, Any]:
    """Query heads from the gain, key-value heads from the rows of `key`, for width D = dim."""
    (heads,) = shapes.need(gain, 1)
    rows, dim = shapes.need(key, 2)
    if dim % heads or rows % (dim // heads):
        raise ArtifactError(
            f"{heads} heads ({gain}) and {rows} rows ({key}) do not fit a width of {dim}"
        )
    return {"heads": heads, "kv_heads": rows // (dim // heads)}


def _mlp_width(shapes: Shapes, name: str) -> dict[str, Any]:
    hidden, dim = shapes.need(name, 2)
    return {"width": hidden / dim}


def _embedding_parts(shapes: Shapes) -> dict[str, Any]:
    """Bigram and smear: present or not, and how large."""
    found: dict[str, Any] = {
        "bigram": {"enabled": False},
        "smear": {"enabled": shapes.has("smear.")},
    }
    if shapes.has("bigram."):
        buckets, width = shapes.need("bigram.embed.weight", 2)
        found["bigram"] = {"enabled": True, "buckets": buckets, "width": width}
    return found


@FAMILIES.register("token-shift")
def _token_shift(shapes: Shapes) -> dict[str, Any]:
    """Section 1: attention where a block has it, the last such layer full, the others windowed."""
    layers = shapes.count("blocks")
    attends = [i for i in range(layers) if shapes.has(f"blocks.{i}.attn.")]
    if not attends:
        raise ArtifactError(
            "no block of the state dict has attention; the token-shift family needs one"
        )
    stack = ["token-shift"] * layers
    for i in attends:
        stack[i] = "full" if i == attends[-1] else f"window:{_PUBLISHED_WINDOW}"
    first = f"blocks.{attends[0]}.attn"
    found = _embedding_parts(shapes) | {
        "stack": [{"layers": stack}],
        "attention": _heads(shapes, f"{first}.q_gain", f"{first}.c_k.weight"),
        "mlp": _mlp_width(shapes, "blocks.0.mlp.fc.weight"),
        "value_embedding": {"enabled": False, "layers": []},
    }
    if shapes.has("ve_embed."):
        layers_with = [i for i in attends if f"ve_scales.{i}" in shapes.by_name]
        width = shapes.need("ve_embed.weight", 2)[1]
        found["value_embedding"] = {"enabled": True, "layers": layers_with, "width": width}
    return found


@FAMILIES.register("depth-recurrent")
def _depth_recurrent(shapes: Shapes) -> dict[str, Any]:
    """Section 2: loops of the shared blocks from the number of virtual layers."""
    entry, shared, leave = (shapes.count(f"{name}_blocks") for name in ("entry", "shared", "exit"))
    virtual = shapes.count("vlayers")
    if (virtual - entry - leave) % shared or virtual - entry - leave < shared:
        raise ArtifactError(
            f"{virtual} virtual layers do not fit {entry} entry, {shared} shared and {leave} exit"
            " blocks"
        )
    return {
        "stack": [
            {"name": "entry_blocks", "layers": [f"full*{entry}"]},
            {
                "name": "shared_blocks",
                "loops": (virtual - entry - leave) // shared,
                "layers": [f"full*{shared}"],
            },
            {"name": "exit_blocks", "layers": [f"full*{leave}"]},
        ],
        "attention": _heads(shapes, "vlayers.0.q_gain", "entry_blocks.0.attn.c_k.weight"),
        "mlp": _mlp_width(shapes, "entry_blocks.0.mlp.fc.weight"),
        "skips": {"enabled": "skip_weights" in shapes.by_name},
    }


@FAMILIES.register("sidecar")
def _sidecar(shapes: Shapes) -> dict[str, Any]:
    """Section 3: attention everywhere, the sidecar's sites on the last layers."""
    layers = shapes.count("blocks")
    found = _embedding_parts(shapes) | {
        "stack": [{"layers": [f"full*{layers}"]}],
        "attention": _heads(shapes, "blocks.0.attn.q_gain", "blocks.0.attn.c_k.weight"),
        "mlp": _mlp_width(shapes, "blocks.0.mlp.fc.weight"),
        "skips": {"enabled": "skip_weights" in shapes.by_name},
        "sidecar": {"enabled": False, "layers": []},
    }
    if shapes.has("shared_sparse"):
        sites = min(shapes.need("shared_sparse_scale", 2)[0], layers)
        width, _, kernel = shapes.need("shared_sparse.local.weight", 3)
        last = list(range(layers - sites, layers))
        found["sidecar"] = {"enabled": True, "layers": last, "width": width, "kernel": kernel}
    return found
