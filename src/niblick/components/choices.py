"""Techniques that are choices of the whole model rather than of one part."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from niblick.components.base import MIXERS, Changes, Entry, Technique, setting, switch

if TYPE_CHECKING:
    from niblick.plan import Plan
    from niblick.recipe import Recipe


def _unrolled(recipe: Recipe) -> Changes:
    stack = recipe.model_dump(mode="json")["model"]["stack"]
    return {"model.stack": [{**segment, "loops": 1} for segment in stack]}


def _layers(recipe: Recipe, plan: Plan) -> list[Entry]:
    found = []
    for mixer, count in sorted(Counter(layer.mixer for layer in plan.layers).items()):
        entry: Entry = {"name": f"{mixer} layers", "count": count}
        if MIXERS[mixer].windowed:
            spans = {layer.span - 1 for layer in plan.layers if layer.mixer == mixer}
            entry["windows"] = sorted(spans)
        found.append(entry)
    return found


def _recurrence(recipe: Recipe, plan: Plan) -> list[Entry]:
    layers, blocks = len(plan.layers), len(plan.visits())
    entry = {"name": "depth recurrence", "virtual_layers": layers, "weight_blocks": blocks}
    return [entry] if blocks < layers else []


def _initialisation(recipe: Recipe, plan: Plan) -> list[Entry]:
    return [
        {"name": f"{recipe.model.linear_init} linear maps"},
        {"name": "zero output projections"},
    ]


def _ensemble(recipe: Recipe, plan: Plan) -> list[Entry]:
    count = recipe.model.members
    return [{"name": "ensemble, probabilities averaged", "members": count}] if count > 1 else []


CHOICES = (
    Technique(
        name="ensemble",
        summary="an ensemble (one member alone)",
        without=setting(model__members=1),
        card=_ensemble,
    ),
    Technique(name="layers", card=_layers),
    Technique(
        name="loops",
        summary="depth recurrence (each block visited once)",
        without=_unrolled,
        card=_recurrence,
    ),
    Technique(
        name="depth-scale",
        summary="depth scaling 1/sqrt(i+1)",
        without=setting(model__depth_scale=False),
        card=lambda recipe, plan: (
            [{"name": "depth scaling 1/sqrt(i+1)"}] * (plan.attends and recipe.model.depth_scale)
        ),
    ),
    Technique(
        name="document-mask",
        summary="document masking of shifts",
        without=setting(model__document_mask=False),
        card=switch("document masking", lambda model: model.document_mask),
    ),
    Technique(
        name="orthogonal",
        summary="orthogonal initialisation (PyTorch's default)",
        group="initialization",
        without=setting(model__linear_init="torch"),
        card=_initialisation,
    ),
)
