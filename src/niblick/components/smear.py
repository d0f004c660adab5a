"""The smear gate (systems.md section 1): each embedding blended with the one before it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from niblick.components.base import (
    ZEROS,
    Call,
    Component,
    ComponentSpec,
    StateEntry,
    section_technique,
    vector,
)

if TYPE_CHECKING:
    from torch import Tensor

    from niblick.recipe.model import ModelRecipe


class Smear(Component):
    """(1 - g) * x + g * prev(x), g the sigmoid of a gate per channel."""

    name = "smear"
    techniques = (section_technique("smear", "smear", "smear gate"),)

    def used(self, model: ModelRecipe) -> bool:
        """As the recipe's section says."""
        return model.smear.enabled

    def spec(self, model: ModelRecipe) -> ComponentSpec:
        """The gate (D,) and one vector of state."""
        return ComponentSpec(
            parameters=(vector("smear.gate", (model.dim,), "smear", ZEROS),),
            state=(StateEntry(name="smear.last", shape=(model.dim,)),),
        )

    def forward(self, root: Any, x: Tensor, call: Call) -> Tensor:
        """x (B, T, D) -> (1 - g) * x + g * prev(x)."""
        from torch import sigmoid

        from niblick.components.functional import previous

        gate, before = sigmoid(root.smear.gate).to(x.dtype), call.last("smear.last")
        call.remember("smear.last", x[:, -1])
        return (1 - gate) * x + gate * previous(x, before, call.boundary)

    def reach(self, model: ModelRecipe) -> int:
        """One token."""
        return 1


SMEAR = Smear()
