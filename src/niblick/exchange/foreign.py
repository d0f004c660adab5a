"""Foreign checkpoints: a published state dict becomes a checkpoint with an inferred recipe.

Sizes and optional parts come from the tensors. What no tensor tells (windows, XSA layers, rotary
width, softcap, context) takes the published value of systems.md sections 1-3 unless an override
says otherwise, and is listed as assumed. Documents are not masked, as published.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from niblick.artifact.checkpoint import Checkpoint
from niblick.codecs.base import exported_tensors
from niblick.errors import ArtifactError
from niblick.exchange.statedict import read_state_dict
from niblick.plan import Plan, Role, make_plan
from niblick.recipe import Recipe, keyed, load_recipe, recipe_from_dict
from niblick.registry import Registry
from niblick.text.tokenizer import CHALLENGE, Tokenizer, load_tokenizer

FAMILIES: Registry[Callable[[Shapes], dict[str, Any]]] = Registry("published model")
_PUBLISHED_WINDOW = 128
_ASSUMED = ("softcap", "context", "document_mask", "mlp.activation")
_ASSUMED_OF_ATTENTION = (
    "depth_scale",
    "attention.qk_norm",
    "attention.xsa_last",
    "attention.rope.dims",
    "attention.rope.frequency_dims",
    "attention.rope.base",
    "attention.rope.train_length",
)


@dataclass(frozen=True)
class Imported(Checkpoint):
    """A checkpoint out of a published file, and what is not from that file.

    `assumed`: what no tensor tells and nobody set, by recipe key (or "tokenizer", "table_dtype").
    `ignored`: names of tensors that the model does not use, with the reason.
    """

    assumed: dict[str, Any]
    ignored: dict[str, str]


@dataclass(frozen=True)
class Shapes:
    """Shapes of a state dict by name; `heads` and `context` hold where no tensor tells them."""

    by_name: dict[str, tuple[int, ...]]
    heads: int
    context: int

    def need(self, name: str, dims: int) -> tuple[int, ...]:
        """The shape of a tensor that must be there, of `dims` axes none of which is empty."""
        shape = self.by_name.get(name)
        if shape is None:
            raise ArtifactError(f"tensor {name!r} is missing from the state dict")
        if len(shape) != dims or 0 in shape:
            raise ArtifactError(f"tensor {name!r} has shape {shape}; {dims} axes were expected")
        return shape

    def count(self, prefix: str) -> int:
        """How many of `prefix.0`, `prefix.1`, ... there are; a gap in the numbers is an error."""
        matches = (
            re.match(rf"{re.escape(prefix)}\.([0-9]{{1,4}})\.", name) for name in self.by_name
        )
        found = sorted({int(match[1]) for match in matches if match})
        if found != list(range(len(found))):
            raise ArtifactError(f"tensors {prefix}.N count {found}, not 0, 1, 2, ...")
        return len(found)

    def has(self, prefix: str) -> bool:
        """Whether any tensor's name begins with `prefix`."""
        return any(name.startswith(prefix) for name in self.by_name)


def import_state_dict(
    path: Path,
    family: str,
    *,
    tokenizer: Tokenizer | None = None,
    overrides: Sequence[str] = (),
    bfloat16_tables: bool = False,
) -> Imported:
    """Read the published state dict at `path` as one of `FAMILIES`, with `key=value` overrides.

    `tokenizer` defaults to the challenge's at V = 1024. `bfloat16_tables` rounds embedding tables
    as the published code does on loading, where the file itself does not say so. Raises
    `ArtifactError` naming the first tensor that is missing, extra or misshapen, and the override
    that contradicts it.
    """
    content = read_state_dict(path)
    recipe, inferred = _infer(content.tensors, family, overrides)
    plan = make_plan(recipe.model)
    ignored = _unused(content.tensors, plan)
    kept = {name: t for name, t in content.tensors.items() if name not in ignored}
    assumed = _assumed(recipe, plan, overrides)
    meta = {"imported_as": family, "imported_from": path.name}
    tables = [p.name for p in plan.exported if p.role is Role.EMBEDDING and p.name in kept]
    if bfloat16_tables:
        kept |= {name: kept[name].to(torch.bfloat16) for name in tables}
    elif not content.says_dtypes:
        assumed["table_dtype"] = "float32"
    if any(kept[name].dtype is torch.bfloat16 for name in tables):
        meta["table_dtype"] = "bfloat16"
    try:
        checked = exported_tensors({name: t.float() for name, t in kept.items()}, plan)
    except ArtifactError as error:
        raise ArtifactError(f"{error}{_blame(recipe, inferred, overrides)}") from None
    if tokenizer is None and recipe.model.vocab_size == 1024:
        tokenizer = load_tokenizer(CHALLENGE)
        assumed["tokenizer"] = tokenizer.name
    if tokenizer is not None and tokenizer.vocab_size != recipe.model.vocab_size:
        raise ArtifactError(
            f"the tokenizer has {tokenizer.vocab_size} pieces, the model {recipe.model.vocab_size};"
            " name the tokenizer it was trained with"
        )
    return Imported(checked, recipe, tokenizer, meta, assumed, ignored)


def _infer(
    tensors: dict[str, Tensor], family: str, overrides: Sequence[str]
) -> tuple[Recipe, dict[str, Any]]:
    """The recipe whose model has the sizes of `tensors`, after `overrides`; what they tell."""
    infer = FAMILIES[family]
    published = load_recipe(family)
    shapes = Shapes(
        {name: tuple(tensor.shape) for name, tensor in tensors.items()},
        _number(overrides, "model.attention.heads", published.model.attention.heads),
        _number(overrides, "model.context", published.model.context),
    )
    vocabulary, dim = shapes.need("tok_emb.weight", 2)
    inferred = {"model": {"vocab_size": vocabulary, "dim": dim} | _parts(shapes) | infer(shapes)}
    values = published.model_dump(mode="json")
    _merge(values, {"model": {"document_mask": False}})
    _merge(values, inferred)
    recipe = recipe_from_dict(values, origin=f"inferred {family} recipe", overrides=overrides)
    return recipe, inferred


def _number(overrides: Sequence[str], key: str, default: int) -> int:
    text = keyed(overrides).get(key, "")
    return int(text) if re.fullmatch("[1-9][0-9]{0,8}", text) else default


def _unused(tensors: dict[str, Tensor], plan: Plan) -> dict[str, str]:
    """Name -> reason of the tensors that a published model holds and does not use."""
    attends = {layer.index for layer in plan.layers if layer.span}
    scales = {name for name in tensors if re.fullmatch(r"ve_scales\.[0-9]{1,4}", name)}
    idle = {name for name in scales if int(name.rpartition(".")[2]) not in attends}
    if scales == idle:
        idle |= {name for name in tensors if name.startswith(("ve_embed.", "ve_proj."))}
    reasons = dict.fromkeys(sorted(idle), "no attention layer adds this value embedding")
    heads = sorted(name for name in tensors if name.startswith("mtp_heads."))
    return reasons | dict.fromkeys(heads, "a head for training only")


def _assumed(recipe: Recipe, plan: Plan, overrides: Sequence[str]) -> dict[str, Any]:
    """Recipe key -> value of everything that tensors leave open and `overrides` do not set."""
    model, keys = recipe.model, list(_ASSUMED)
    if model.mlp.activation == "leaky-relu-squared":
        keys.append("mlp.slope")
    if any(layer.span for layer in plan.layers):
        keys += _ASSUMED_OF_ATTENTION
    if any(layer.mixer == "window" for layer in plan.layers):
        keys.append("stack.0.layers")
    if model.attention.q_gain is None:
        keys.append("attention.heads")
    if model.sidecar.enabled:
        keys.append("sidecar.layers")
    if model.skips.enabled and len(plan.layers) % 2:
        keys.append("skips.pop")
    chosen = {key.replace("xsa_layers", "xsa_last") for key in keyed(overrides)}
    found = {}
    for key in (f"model.{key}" for key in keys):
        if not any(f"{key}.".startswith(f"{c}.") or c.startswith(f"{key}.") for c in chosen):
            found[key] = _lookup(recipe.model_dump(mode="json"), key)
    return found


def _blame(recipe: Recipe, inferred: dict[str, Any], overrides: Sequence[str]) -> str:
    """The overrides that say something else than the tensors, as the end of an error line."""
    values, found = recipe.model_dump(mode="json"), []
    for key in keyed(overrides):
        told, used = _lookup(inferred, key), _lookup(values, key)
        if told is not None and told != used:
            found.append(f"--set {key} gives {used}, the tensors say {told}")
    return "; ".join(["", *found])


def _lookup(values: Any, key: str) -> Any:
    """The value at a dotted key of nested tables and lists, None where there is none."""
    for part in key.split("."):
        if isinstance(values, list) and part.isdecimal() and int(part) < len(values):
            values = values[int(part)]
        elif isinstance(values, dict) and part in values:
            values = values[part]
        else:
            return None
    return values


def _merge(target: dict[str, Any], changes: dict[str, Any]) -> None:
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(target.get(key), dict):
            _merge(target[key], value)
        else:
            target[key] = value


def _parts(shapes: Shapes) -> dict[str, Any]:
    """The optional parts of any family: there or not, and how large."""
    found: dict[str, Any] = {
        "tied": "lm_head.weight" not in shapes.by_name,
        "scalars": "virtual" if shapes.has("vlayers.") else "block",
        "bigram": {"enabled": False},
        "smear": {"enabled": shapes.has("smear.")},
        "skips": {"enabled": "skip_weights" in shapes.by_name},
        "residual_mix": {"enabled": any(name.endswith(".resid_mix") for name in shapes.by_name)},
    }
    if shapes.has("bigram."):
        buckets, width = shapes.need("bigram.embed.weight", 2)
        projection = "bigram.proj.weight" in shapes.by_name
        found["bigram"] = {
            "enabled": True,
            "buckets": buckets,
            "width": width,
            "projection": projection,
        }
    return found


def _block(shapes: Shapes, block: str, gains: str | None = None) -> dict[str, Any]:
    """Attention and channel mixer as block `block` has them, its gains under `gains`."""
    attn = f"{block}.attn"
    rows, dim = shapes.need(f"{attn}.c_k.weight", 2)
    gain, heads = f"{gains or attn}.q_gain", shapes.heads
    attention: dict[str, Any] = {
        "k_gain": f"{gains or attn}.k_gain" in shapes.by_name,
        "kv_shift": f"{attn}.k_shift_mix" in shapes.by_name,
        "local_value": f"{attn}.local_v_mix" in shapes.by_name,
    }
    if gain in shapes.by_name:
        (heads,) = shapes.need(gain, 1)
    else:
        attention["q_gain"] = None
    if dim % heads or rows % (dim // heads):
        raise ArtifactError(
            f"{heads} heads and the {rows} rows of {attn}.c_k.weight do not fit a width of {dim};"
            " set model.attention.heads"
        )
    attention |= {"heads": heads, "kv_heads": rows // (dim // heads)}
    return {"attention": attention, "mlp": _mlp(shapes, block)}


def _mlp(shapes: Shapes, block: str) -> dict[str, Any]:
    hidden, dim = shapes.need(f"{block}.mlp.fc.weight", 2)
    return {"width": hidden / dim}


@FAMILIES.register("token-shift")
def _token_shift(shapes: Shapes) -> dict[str, Any]:
    """Section 1: attention where a block has it, in windows; the last one's is the context.

    A window of N is N + 1 keys, and so the published full layer sees one key more than the training
    length where a sequence is longer.
    """
    layers = shapes.count("blocks")
    attends = [i for i in range(layers) if shapes.has(f"blocks.{i}.attn.")]
    stack = ["token-shift"] * layers
    for i in attends:
        stack[i] = f"window:{shapes.context if i == attends[-1] else _PUBLISHED_WINDOW}"
    runs = ((text, len(list(same))) for text, same in groupby(stack))
    found: dict[str, Any] = {
        "stack": [{"layers": [f"{text}*{n}" if n > 1 else text for text, n in runs]}],
        "attention": {"heads": 1, "kv_heads": 1, "rope": {"dims": 0}},
        "mlp": _mlp(shapes, "blocks.0"),
        "value_embedding": {"enabled": False, "layers": []},
    }
    if attends:
        found |= _block(shapes, f"blocks.{attends[0]}")
    embedded = [i for i in attends if f"ve_scales.{i}" in shapes.by_name]
    if embedded:
        width = shapes.need("ve_embed.weight", 2)[1]
        found["value_embedding"] = {"enabled": True, "layers": embedded, "width": width}
    return found


@FAMILIES.register("depth-recurrent")
def _depth_recurrent(shapes: Shapes) -> dict[str, Any]:
    """Section 2: loops of the shared blocks from the number of virtual layers."""
    blocks = {name: shapes.count(f"{name}_blocks") for name in ("entry", "shared", "exit")}
    virtual, shared = shapes.count("vlayers"), blocks["shared"]
    looped = virtual - blocks["entry"] - blocks["exit"]
    loops = looped // max(shared, 1)
    if not virtual or looped < shared or loops * shared != looped:
        raise ArtifactError(
            f"{virtual} virtual layers do not fit {blocks['entry']} entry, {shared} shared and"
            f" {blocks['exit']} exit blocks"
        )
    stack = [
        {
            "name": f"{name}_blocks",
            "loops": loops if name == "shared" else 1,
            "layers": [f"full*{count}"],
        }
        for name, count in blocks.items()
        if count
    ]
    return {"stack": stack, **_block(shapes, f"{stack[0]['name']}.0", "vlayers.0")}


@FAMILIES.register("sidecar")
def _sidecar(shapes: Shapes) -> dict[str, Any]:
    """Section 3: attention everywhere, the sidecar's sites on the last layers."""
    layers = shapes.count("blocks")
    found: dict[str, Any] = {
        "stack": [{"layers": [f"full*{layers}"]}],
        "sidecar": {"enabled": False, "layers": []},
        **_block(shapes, "blocks.0"),
    }
    if shapes.has("shared_sparse"):
        sites = min(shapes.need("shared_sparse_scale", 2)[0], layers)
        width, _, kernel = shapes.need("shared_sparse.local.weight", 3)
        last = list(range(layers - sites, layers))
        found["sidecar"] = {"enabled": True, "layers": last, "width": width, "kernel": kernel}
    return found
