"""What a layer's residual stream is weighted by: branch scales and the residual mix."""

from __future__ import annotations

from math import exp
from typing import TYPE_CHECKING, Any

from niblick.components.base import (
    ONES,
    ComponentSpec,
    Init,
    Technique,
    VirtualLayer,
    section_technique,
    setting,
    vector,
)

if TYPE_CHECKING:
    from torch import Tensor

    from niblick.recipe.model import ModelRecipe


class Scales:
    """A factor per channel for what the mixer adds, and one for the channel mixer."""

    def spec(self, model: ModelRecipe, layer: VirtualLayer) -> ComponentSpec:
        """attn_scale (D,) and mlp_scale (D,), per block or per virtual layer."""
        names = (f"{layer.scalars}.attn_scale", f"{layer.scalars}.mlp_scale")
        return ComponentSpec(
            parameters=tuple(vector(name, (model.dim,), "scales", ONES) for name in names)
        )


class ResidualMix:
    """m0 * x + m1 * x0, x0 being the first hidden state."""

    techniques = (
        section_technique(
            "residual_mix",
            "residual-mix",
            "residual mix with the first hidden state",
            card="residual mix",
        ),
        Technique(
            name="phase",
            summary="phase residual mix (identity)",
            group="initialization",
            without=setting(model__residual_mix__init="identity"),
            card=lambda recipe, plan: (
                [{"name": "phase residual mix"}]
                * (recipe.model.residual_mix.enabled and recipe.model.residual_mix.init == "phase")
            ),
        ),
    )

    def spec(self, model: ModelRecipe, layer: VirtualLayer) -> ComponentSpec:
        """resid_mix (2, D), per block or per virtual layer, where the recipe has it."""
        options = model.residual_mix
        if not options.enabled:
            return ComponentSpec()
        depth = layer.index / max(model.depth - 1, 1)
        first = 1 / (1 + exp(-3 * (depth - 0.5))) if options.init == "phase" else 1.0
        init = Init(kind="phase", value=first)
        mix = vector(f"{layer.scalars}.resid_mix", (2, model.dim), "residual_mix", init)
        return ComponentSpec(parameters=(mix,))

    def forward(self, scalars: Any, x: Tensor, x0: Tensor) -> Tensor:
        """x, x0 (B, T, D) -> m0 * x + m1 * x0."""
        mix: Tensor = scalars.resid_mix.to(x.dtype)
        return mix[0] * x + mix[1] * x0


SCALES, RESIDUAL_MIX = Scales(), ResidualMix()
