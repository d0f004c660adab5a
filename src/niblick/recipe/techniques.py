"""Named techniques and what a recipe without each looks like: the vocabulary of `niblick ablate`.
No torch.

A recipe uses a technique when taking it out changes the recipe.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from niblick.errors import RecipeError
from niblick.limits import quoted
from niblick.recipe.load import recipe_from_dict
from niblick.recipe.model import ModelRecipe
from niblick.recipe.schema import Recipe

Changes = dict[str, Any]


@dataclass(frozen=True)
class Technique:
    """A technique's name, what it is, and the values (key -> value) that a recipe without it
    has.
    """

    name: str
    summary: str
    without: Callable[[Recipe], Changes]


def _rewritten(pattern: str, replacement: str) -> Callable[[Recipe], Changes]:
    """The stack with every layer's text rewritten by a regular expression."""

    def changes(recipe: Recipe) -> Changes:
        stack = recipe.model_dump(mode="json")["model"]["stack"]
        layers = [
            [re.sub(pattern, replacement, text) for text in segment["layers"]] for segment in stack
        ]
        return {"model.stack": [{**s, "layers": new} for s, new in zip(stack, layers, strict=True)]}

    return changes


def _unrolled(recipe: Recipe) -> Changes:
    stack = recipe.model_dump(mode="json")["model"]["stack"]
    return {"model.stack": [{**segment, "loops": 1} for segment in stack]}


def _no_shift(recipe: Recipe) -> Changes:
    return _rewritten(r"^token-shift", f"window:{_window(recipe.model)}")(recipe)


def _window(model: ModelRecipe) -> int:
    """The recipe's own first window, else 128."""
    found = [spec.window for segment in model.stack for spec in segment.blocks if spec.window]
    return found[0] if found else 128


def _set(**values: Any) -> Callable[[Recipe], Changes]:
    """Fixed values; `__` in a name stands for a dot."""
    changes = {key.replace("__", "."): value for key, value in values.items()}
    return lambda recipe: changes


_ALL = (
    Technique("bigram", "hashed bigram embedding", _set(model__bigram__enabled=False)),
    Technique("smear", "smear gate", _set(model__smear__enabled=False)),
    Technique("token-shift", "token-shift layers (window attention in their place)", _no_shift),
    Technique(
        "window", "windows (full attention in their place)", _rewritten(r"^window:[0-9]+", "full")
    ),
    Technique("loops", "depth recurrence (each block visited once)", _unrolled),
    Technique("skips", "U-Net skips", _set(model__skips__enabled=False)),
    Technique("sidecar", "shared sparse sidecar", _set(model__sidecar__enabled=False)),
    Technique("value-embedding", "value embedding", _set(model__value_embedding__enabled=False)),
    Technique(
        "residual-mix",
        "residual mix with the first hidden state",
        _set(model__residual_mix__enabled=False),
    ),
    Technique(
        "xsa",
        "exclusive self attention",
        _set(model__attention__xsa_last=0, model__attention__xsa_layers=None),
    ),
    Technique("qk-norm", "normalised queries and keys", _set(model__attention__qk_norm=False)),
    Technique("q-gain", "query gain", _set(model__attention__q_gain=None)),
    Technique("k-gain", "key gain", _set(model__attention__k_gain=False)),
    Technique("kv-shift", "k/v shift mixing", _set(model__attention__kv_shift=False)),
    Technique("local-value", "local value residual", _set(model__attention__local_value=False)),
    Technique(
        "rotary",
        "rotary embedding",
        _set(model__attention__rope__dims=0, model__attention__rope__train_length=None),
    ),
    Technique(
        "rotary-rescaling", "rescaled rotary base", _set(model__attention__rope__train_length=None)
    ),
    Technique("depth-scale", "depth scaling 1/sqrt(i+1)", _set(model__depth_scale=False)),
    Technique("document-mask", "document masking of shifts", _set(model__document_mask=False)),
    Technique(
        "document-attention", "attention within documents", _set(model__document_attention="across")
    ),
    Technique("softcap", "logit softcap", _set(model__softcap=None)),
    Technique("tied", "tied embedding (a head of its own)", _set(model__tied=False)),
    Technique(
        "leaky-relu", "leaky ReLU (ReLU in its place)", _set(model__mlp__activation="relu-squared")
    ),
    Technique(
        "orthogonal",
        "orthogonal initialisation (PyTorch's default)",
        _set(model__linear_init="torch"),
    ),
    Technique("overtone", "overtone embedding (normal)", _set(model__embedding__init="normal")),
    Technique("phase", "phase residual mix (identity)", _set(model__residual_mix__init="identity")),
    Technique("mtp", "multi-token prediction", _set(model__mtp__heads=0)),
    Technique("averaging", "weight averaging", _set(training__averaging__kind="none")),
    Technique("qat", "late quantization-aware training", _set(training__qat__enabled=False)),
    Technique(
        "weight-decay",
        "weight decay",
        _set(training__muon__weight_decay=0.0, training__adam__weight_decay=0.0),
    ),
    Technique(
        "dropout",
        "dropout of table rows",
        _set(
            training__dropout__token=0.0,
            training__dropout__bigram=0.0,
            training__dropout__value_embedding=0.0,
        ),
    ),
    Technique("clip", "gradient clipping", _set(training__clip=0.0)),
    Technique("nesterov", "Nesterov momentum", _set(training__muon__nesterov=False)),
    Technique("warmdown", "learning-rate warmdown", _set(training__schedule__warmdown=0.0)),
)
TECHNIQUES: dict[str, Technique] = {technique.name: technique for technique in _ALL}


def used_techniques(recipe: Recipe) -> list[str]:
    """Names of the techniques that `recipe` uses and can do without."""
    return [name for name in TECHNIQUES if _differs(recipe, name)]


def without(recipe: Recipe, name: str) -> Recipe:
    """The recipe without one technique, or several as in "bigram+smear".

    Raises `RecipeError` for a name that is unknown or that the recipe does not use, listing those
    it uses.
    """
    changed = recipe
    for part in name.split("+"):
        if part not in TECHNIQUES:
            raise RecipeError(
                f"unknown technique {quoted(part)}; {recipe.name} uses:"
                f" {', '.join(used_techniques(recipe))}"
            )
        after = _changed(changed, TECHNIQUES[part].without(changed))
        if after == changed:
            raise RecipeError(
                f"{recipe.name} does not use the technique {part!r}; it uses:"
                f" {', '.join(used_techniques(recipe))}"
            )
        changed = after
    return changed


def _differs(recipe: Recipe, name: str) -> bool:
    try:
        return _changed(recipe, TECHNIQUES[name].without(recipe)) != recipe
    except RecipeError:
        return False


def _changed(recipe: Recipe, changes: Changes) -> Recipe:
    values = recipe.model_dump(mode="json")
    for key, value in changes.items():
        *path, leaf = key.split(".")
        node = values
        for part in path:
            node = node[part]
        node[leaf] = value
    return recipe_from_dict(values, origin=recipe.name)
