"""Hashed bigram embedding of the current and the previous token (systems.md section 1)."""

from __future__ import annotations

from math import sqrt
from typing import TYPE_CHECKING, Any

from niblick.components.base import (
    ZEROS,
    Call,
    Component,
    ComponentSpec,
    Init,
    Parameter,
    Role,
    StateEntry,
    linear,
    matrix_init,
    section_technique,
    total,
    vector,
)

if TYPE_CHECKING:
    from torch import Tensor

    from niblick.recipe.model import ModelRecipe

NO_TOKEN = -1  # in the state: there is no previous token


class Bigram(Component):
    """Rows of a hashed table, mapped to the model's width and added to the token's."""

    name = "bigram"
    table = "bigram"
    techniques = (section_technique("bigram", "bigram", "hashed bigram embedding"),)

    def used(self, model: ModelRecipe) -> bool:
        """As the recipe's section says."""
        return model.bigram.enabled

    def spec(self, model: ModelRecipe) -> ComponentSpec:
        """One scale, a table (M, width), a projection (D, width) if any; state: the last token."""
        options = model.bigram
        rows = Parameter(
            name="bigram.embed.weight",
            shape=(options.buckets, options.width),
            role=Role.EMBEDDING,
            init=ZEROS,
            component="bigram",
        )
        scale = vector("bigram.scale", (), "bigram", Init(kind="constant", value=options.scale))
        last = StateEntry(name="bigram.last", shape=(1,), kind="int64", fill=NO_TOKEN)
        found = ComponentSpec(parameters=(scale, rows), state=(last,))
        if not options.projection:
            return found
        start = matrix_init(model, model.dim, options.width, gain=1 / sqrt(2 * model.depth))
        return total(found, linear("bigram.proj.weight", model.dim, options.width, "bigram", start))

    def index(self, call: Call) -> Tensor:
        """Rows (B, T) int64 of the table for each token and the one before it.

        ((36313 t) xor (27191 t_before)) mod (M-1) in int32 arithmetic, M-1 where there is no token
        before.
        """
        import torch

        tokens, last, buckets = call.tokens, call.last("bigram.last"), call.model.bigram.buckets
        if last is None:
            last = torch.full_like(tokens[:, :1], NO_TOKEN)
        before = torch.cat([last, tokens[:, :-1]], dim=1)
        if call.boundary is not None:
            before = before.masked_fill(call.boundary, NO_TOKEN)
        call.remember("bigram.last", tokens[:, -1:].long())
        mixed = torch.bitwise_xor(36313 * tokens.int(), 27191 * before.int())
        hashed = torch.remainder(mixed.long(), buckets - 1)
        return torch.where(before == NO_TOKEN, buckets - 1, hashed)

    def forward(self, root: Any, call: Call) -> Tensor:
        """The token pairs' rows through the projection and the scale, (B, T, D)."""
        from torch.nn.functional import embedding

        from niblick.components.functional import dropped

        rows = embedding(self.index(call), root.bigram.embed.weight)
        if call.model.bigram.projection:
            rows = root.bigram.proj(rows)
        # Of the rows' dtype, as the scale has no axes.
        return dropped(root.bigram.scale * rows, call.factors.get(self.table))

    def reach(self, model: ModelRecipe) -> int:
        """One token."""
        return 1


BIGRAM = Bigram()
