"""U-Net skips (systems.md sections 2 and 3): early outputs return, weighted, in later layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from niblick.components.base import ONES, Component, ComponentSpec, section_technique, vector

if TYPE_CHECKING:
    from torch import Tensor

    from niblick.recipe.model import ModelRecipe


class Skips(Component):
    """The first n//2 outputs, weighted per channel and added to the inputs of n//2 later layers."""

    name = "skips"
    techniques = (section_technique("skips", "skips", "U-Net skips"),)

    def used(self, model: ModelRecipe) -> bool:
        """As the recipe's section says, if there are layers to pair."""
        return model.skips.enabled and model.depth > 1

    def spec(self, model: ModelRecipe) -> ComponentSpec:
        """Weights (n//2, D), ones."""
        shape = (model.depth // 2, model.dim)
        return ComponentSpec(parameters=(vector("skip_weights", shape, "skips", ONES),))

    def places(self, model: ModelRecipe) -> dict[int, int]:
        """Virtual layer -> index of the weight it applies, in the order of popping."""
        if not self.used(model):
            return {}
        half = model.depth // 2
        first = half if model.skips.pop == "early" else model.depth - half
        return {first + j: j for j in range(half)}

    def forward(self, root: Any, x: Tensor, skip: Tensor, index: int) -> Tensor:
        """x + w * skip; x, skip (B, T, D)."""
        added: Tensor = root.skip_weights[index].to(x.dtype) * skip
        return x + added


SKIPS = Skips()
