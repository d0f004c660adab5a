"""The techniques a recipe uses, by the groups of a record card (systems.md section 5), each with
its parameters.
"""

from __future__ import annotations

from typing import Any

from niblick.codecs import CODECS, rounding_specs
from niblick.plan import Plan, make_plan
from niblick.recipe import Recipe, load_recipe

GROUPS = (
    "architecture",
    "quantization",
    "weight averaging",
    "optimizer",
    "LR schedule",
    "regularization",
    "initialization",
    "evaluation",
    "test-time training",
    "sequence length",
    "compression",
    "other",
)
PUBLISHED = ("token-shift", "depth-recurrent", "sidecar")
Techniques = dict[str, list[dict[str, Any]]]


def techniques(recipe: Recipe, plan: Plan) -> Techniques:
    """Group -> list of {"name", and its parameters}; empty groups are left out."""
    found = {
        "architecture": _architecture(recipe, plan),
        "quantization": _quantization(recipe),
        "weight averaging": _averaging(recipe),
        "optimizer": _optimizer(recipe),
        "LR schedule": _schedule(recipe),
        "regularization": _regularization(recipe),
        "initialization": _initialization(recipe),
        "evaluation": [_evaluation(recipe)],
        "sequence length": [
            {
                "name": "sequence length",
                "train": recipe.training.sequence_length,
                "context": recipe.model.context,
            }
        ],
        "compression": [_compression(recipe)],
        "other": _other(recipe),
    }
    return {group: found[group] for group in GROUPS if found.get(group)}


def new_techniques(recipe: Recipe, plan: Plan) -> list[str]:
    """Names of techniques that none of the three published recipes has."""
    from niblick.plan import make_plan

    known: set[str] = set()
    for name in PUBLISHED:
        published = load_recipe(name)
        known |= _names(techniques(published, make_plan(published.model)))
    return sorted(_names(techniques(recipe, plan)) - known)


def _names(found: Techniques) -> set[str]:
    return {entry["name"] for entries in found.values() for entry in entries}


def _entry(name: str, section: Any, *left_out: str) -> dict[str, Any]:
    """A technique whose parameters are a recipe section's values."""
    values = section.model_dump(mode="json")
    return {
        "name": name,
        **{k: v for k, v in values.items() if k not in (*left_out, "enabled") and v is not None},
    }


def _architecture(recipe: Recipe, plan: Plan) -> list[dict[str, Any]]:
    model = recipe.model
    mixers: dict[str, int] = {}
    for layer in plan.layers:
        mixers[layer.mixer] = mixers.get(layer.mixer, 0) + 1
    windows = [layer.span - 1 for layer in plan.layers if layer.mixer == "window"]
    rope = model.attention.rope
    heads = {
        "name": "grouped-query attention",
        "heads": model.attention.heads,
        "kv_heads": model.attention.kv_heads,
    }
    found: list[dict[str, Any]] = [
        {"name": f"{mixer} layers", "count": count}
        | ({"windows": windows} if mixer == "window" else {})
        for mixer, count in sorted(mixers.items())
    ]
    if any(layer.span for layer in plan.layers):
        found += [
            heads,
            {"name": "partial rotary embedding", "dims": model.rope_dims, "base": rope.base},
        ]
    found.append(_entry(f"{model.mlp.activation} MLP", model.mlp, "activation"))
    if plan.weight_blocks < len(plan.layers):
        found.append(
            {
                "name": "depth recurrence",
                "virtual_layers": len(plan.layers),
                "weight_blocks": plan.weight_blocks,
            }
        )
    found += [
        _entry(label, section)
        for label, section in (
            ("hashed bigram embedding", model.bigram),
            ("smear gate", model.smear),
            ("value embedding", model.value_embedding),
            ("U-Net skips", model.skips),
            ("shared sparse sidecar", model.sidecar),
            ("residual mix", model.residual_mix),
        )
        if section.enabled
    ]
    return found + _switches(recipe, plan)


def _switches(recipe: Recipe, plan: Plan) -> list[dict[str, Any]]:
    model, options = recipe.model, recipe.model.attention
    attends = any(layer.span for layer in plan.layers)
    chosen: tuple[tuple[str, bool, dict[str, Any]], ...] = (
        ("QK norm", attends and options.qk_norm, {}),
        ("query gain", attends and options.q_gain is not None, {"init": options.q_gain}),
        ("key gain", attends and options.k_gain, {}),
        ("k/v shift mixing", attends and options.kv_shift, {}),
        ("local value residual", attends and options.local_value, {}),
        (
            "exclusive self attention",
            any(layer.xsa for layer in plan.layers),
            {"layers": [layer.index for layer in plan.layers if layer.xsa]},
        ),
        ("depth scaling 1/sqrt(i+1)", attends and model.depth_scale, {}),
        (
            "rotary base rescaling",
            attends and options.rope.train_length is not None,
            {"train_length": options.rope.train_length},
        ),
        ("document masking", model.document_mask, {}),
        ("attention within documents", attends and model.document_attention == "within", {}),
        ("tied embedding", model.tied, {}),
        ("logit softcap", model.softcap is not None, {"cap": model.softcap}),
    )
    return [{"name": name, **parameters} for name, used, parameters in chosen if used]


def _evaluation(recipe: Recipe) -> dict[str, Any]:
    options = recipe.evaluation
    stride = {"stride": options.stride} if options.mode == "sliding" else {}
    return {
        "name": f"{options.mode} evaluation",
        **stride,
        "context": options.context or recipe.model.context,
    }


def _compression(recipe: Recipe) -> dict[str, Any]:
    return CODECS[recipe.artifact.codec].describe(recipe)["compression"]


def _quantization(recipe: Recipe) -> list[dict[str, Any]]:
    described = CODECS[recipe.artifact.codec].describe(recipe)["quantization"]
    found: list[dict[str, Any]] = [{**described, "max_bytes": recipe.artifact.max_bytes}]
    if rounds_late(recipe):
        found.append(_entry("late quantization-aware training", recipe.training.qat))
    return found


def rounds_late(recipe: Recipe) -> bool:
    """Whether training rounds as the recipe's codec will."""
    return bool(rounding_specs(recipe, make_plan(recipe.model), refuse=False))


def _averaging(recipe: Recipe) -> list[dict[str, Any]]:
    averaging = recipe.training.averaging
    if averaging.kind == "none":
        return []
    keys = {"ema": ("decay", "warmup"), "swa": ("every", "start")}[averaging.kind]
    return [{"name": averaging.kind.upper(), **{key: getattr(averaging, key) for key in keys}}]


def _optimizer(recipe: Recipe) -> list[dict[str, Any]]:
    training = recipe.training
    return [
        _entry("Muon", training.muon, "weight_decay"),
        _entry("Adam", training.adam, "weight_decay"),
        {"name": "batch", "tokens": training.batch_tokens},
    ]


def _schedule(recipe: Recipe) -> list[dict[str, Any]]:
    return [_entry("linear warmdown", recipe.training.schedule)]


def _regularization(recipe: Recipe) -> list[dict[str, Any]]:
    training = recipe.training
    found: list[dict[str, Any]] = [
        {
            "name": "decoupled weight decay",
            "muon": training.muon.weight_decay,
            "adam": training.adam.weight_decay,
        }
    ]
    shares = {name: share for name, share in training.dropout.model_dump().items() if share}
    if shares:
        found.append({"name": "dropout of table rows", **shares})
    if training.clip:
        found.append({"name": "gradient clipping", "norm": training.clip})
    return found


def _initialization(recipe: Recipe) -> list[dict[str, Any]]:
    model = recipe.model
    found = [
        _entry(f"{model.embedding.init} embedding", model.embedding, "init"),
        {"name": f"{model.linear_init} linear maps"},
        {"name": "zero output projections"},
    ]
    if model.residual_mix.enabled and model.residual_mix.init == "phase":
        found.append({"name": "phase residual mix"})
    return found


def _other(recipe: Recipe) -> list[dict[str, Any]]:
    model, data = recipe.model, recipe.data
    found: list[dict[str, Any]] = [
        {"name": "tokenizer", "kind": data.tokenizer, "vocabulary": model.vocab_size}
    ]
    if model.mtp.heads:
        found.append(_entry("multi-token prediction", model.mtp))
    return found
