"""Keys added to recipes since version 0.1: files leave them out where they are at their default.

So a recipe that uses nothing new is stored as version 0.1 stored it: its checkpoints resume, its
hash stays, and its artifact spends no byte on keys that say nothing. Used by loading and storing
alone; docs/compatibility.md states the promise.
"""

from __future__ import annotations

from typing import Any

from niblick.recipe.base import Section
from niblick.recipe.schema import Recipe

ADDED_SINCE_0_1 = (
    "plugins",
    "data.development",
    "data.share",
    "data.rows",
    "training.init_from",
    "training.max_passes",
    "training.optimizer",
    "training.muon.momentum_form",
    "training.muon.decay_after_update",
    "training.muon.include",
    "training.muon.neuron_beta",
    "training.adam.decoupled",
    "training.adam.head_lr",
    "training.schedule.kind",
    "training.qat.min_passes",
    "training.averaging.width",
    "training.reduce",
    "model.bigram.projection",
    "model.members",
    "model.shared_tables",
)


def stored_values(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain JSON values, without keys added since 0.1 that are at their default."""
    values = recipe.model_dump(mode="json")
    for key in ADDED_SINCE_0_1:
        *path, leaf = key.split(".")
        node, section = values, recipe
        for part in path:
            node, section = node[part], getattr(section, part)
        found = getattr(section, leaf)
        default = type(section).model_fields[leaf].get_default(call_default_factory=True)
        if found == (type(found)() if isinstance(found, Section) else default):
            del node[leaf]
    return values
