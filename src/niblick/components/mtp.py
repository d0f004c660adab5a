"""Multi-token prediction: further heads, used in training only and dropped at export."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from niblick.components.base import (
    ZEROS,
    Component,
    ComponentSpec,
    Parameter,
    Role,
    Technique,
    section_entry,
    setting,
)

if TYPE_CHECKING:
    from torch import Tensor

    from niblick.recipe.model import ModelRecipe


class Mtp(Component):
    """Head j speaks of the token j + 1 further on than the model's own head."""

    name = "mtp"
    techniques = (
        Technique(
            name="mtp",
            summary="multi-token prediction",
            group="other",
            without=setting(model__mtp__heads=0),
            card=lambda recipe, plan: (
                [section_entry("multi-token prediction", recipe.model.mtp)]
                * (recipe.model.mtp.heads > 0)
            ),
        ),
    )

    def used(self, model: ModelRecipe) -> bool:
        """Where there are heads."""
        return model.mtp.heads > 0

    def spec(self, model: ModelRecipe) -> ComponentSpec:
        """Heads (V, D), zero at the start; no part of the exported model."""
        shape = (model.vocab_size, model.dim)
        names = (f"mtp_heads.{i}.weight" for i in range(model.mtp.heads))
        return ComponentSpec(
            parameters=tuple(
                Parameter(name=name, shape=shape, role=Role.HEAD, init=ZEROS, component="mtp")
                for name in names
            )
        )

    def forward(self, root: Any, hidden: Tensor) -> list[Tensor]:
        """hidden (B, T, D) -> logits (B, T, V) of each head, before the softcap."""
        from torch.nn.functional import linear

        return [linear(hidden, head.weight.to(hidden.dtype)) for head in root.mtp_heads.children()]


MTP = Mtp()
