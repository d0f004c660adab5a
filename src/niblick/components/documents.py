"""Attention within documents: where the document of each position starts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from niblick.components.base import Call, Component, ComponentSpec, StateEntry, Technique, setting

if TYPE_CHECKING:
    from torch import Tensor

    from niblick.recipe.model import ModelRecipe


class Documents(Component):
    """The newest BOS at or before each position, kept where attention stays within documents."""

    name = "documents"
    techniques = (
        Technique(
            name="document-attention",
            summary="attention within documents",
            without=setting(model__document_attention="across"),
            card=lambda recipe, plan: (
                [{"name": "attention within documents"}]
                * (plan.attends and recipe.model.document_attention == "within")
            ),
        ),
    )

    def used(self, model: ModelRecipe) -> bool:
        """Where the recipe says "within"."""
        return model.document_attention == "within"

    def spec(self, model: ModelRecipe) -> ComponentSpec:
        """One position of state."""
        return ComponentSpec(
            state=(StateEntry(name="document.start", shape=(1,), kind="int64", fill=0),)
        )

    def forward(self, call: Call) -> Tensor:
        """The absolute position (B, T) of the newest BOS at or before each token."""
        import torch

        length, device = call.tokens.shape[1], call.tokens.device
        positions = torch.arange(call.position, call.position + length, device=device)
        starts = torch.where(call.tokens == call.model.bos_id, positions, -1)
        last = call.last("document.start")
        if last is None:
            last = torch.zeros_like(starts[:, :1])
        first = torch.cummax(torch.cat([last, starts], dim=1), dim=1).values[:, 1:].contiguous()
        call.remember("document.start", first[:, -1:])
        return first


DOCUMENTS = Documents()
