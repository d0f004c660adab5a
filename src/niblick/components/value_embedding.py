"""Value embedding (systems.md section 1): a second token table, added to attention's values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from niblick.components.base import (
    Call,
    Component,
    ComponentSpec,
    Init,
    Parameter,
    Role,
    VirtualLayer,
    linear,
    matrix_init,
    section_technique,
    total,
    vector,
)

if TYPE_CHECKING:
    from torch import Tensor

    from niblick.recipe.model import ModelRecipe


class ValueEmbedding(Component):
    """Rows of a token table through a projection, computed once; each layer has its own scale."""

    name = "value_embedding"
    table = "value_embedding"
    techniques = (section_technique("value_embedding", "value-embedding", "value embedding"),)

    def used(self, model: ModelRecipe) -> bool:
        """As the recipe's section says."""
        return model.value_embedding.enabled

    def spec(self, model: ModelRecipe) -> ComponentSpec:
        """A table (V, width), a projection (G*E, width) and a scale per listed layer."""
        options, name = model.value_embedding, "value_embedding"
        out = model.attention.kv_heads * model.head_dim
        rows = Parameter(
            name="ve_embed.weight",
            shape=(model.vocab_size, options.width),
            role=Role.EMBEDDING,
            init=Init(kind="normal", value=options.std),
            component=name,
        )
        start, scale = (
            matrix_init(model, out, options.width),
            Init(kind="constant", value=options.scale),
        )
        layers = sorted(options.layers)
        return total(
            ComponentSpec(parameters=(rows,)),
            linear("ve_proj.weight", out, options.width, name, start),
            ComponentSpec(
                parameters=tuple(vector(f"ve_scales.{i}", (1,), name, scale) for i in layers)
            ),
        )

    def forward(self, root: Any, call: Call) -> Tensor:
        """The tokens' rows (B, T, G*E), before a layer's scale."""
        from torch.nn.functional import embedding

        from niblick.components.functional import dropped

        rows = root.ve_proj(embedding(call.tokens, root.ve_embed.weight))
        return dropped(rows, call.factors.get(self.table))

    def scale(self, layer: VirtualLayer, call: Call) -> Tensor:
        """The layer's, for each channel (G*E,)."""
        found: Tensor = getattr(call.root.ve_scales, str(layer.index))
        return found.expand(call.model.attention.kv_heads * call.model.head_dim)

    def add(self, v: Tensor, layer: VirtualLayer, call: Call) -> Tensor:
        """v (B, T, G, E) plus the embedding with the layer's scale."""
        embedded, flat = call.value_embedding, v.flatten(2)
        assert embedded is not None
        flat = flat + self.scale(layer, call).to(v.dtype) * embedded.to(v.dtype)
        return flat.view(v.shape)


VALUE_EMBEDDING = ValueEmbedding()
