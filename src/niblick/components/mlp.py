"""The channel mixer: W_2 act(W_1 u)^2 with act = leaky ReLU or ReLU (systems.md section 1)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from niblick.components.base import (
    ZEROS,
    ComponentSpec,
    Technique,
    VirtualLayer,
    linear,
    matrix_init,
    section_entry,
    setting,
    total,
)

if TYPE_CHECKING:
    from torch import Tensor

    from niblick.recipe.model import ModelRecipe


class Mlp:
    """W_2 act(W_1 u)^2 with hidden width `model.mlp_dim`."""

    techniques = (
        Technique(
            name="mlp",
            card=lambda recipe, plan: [
                section_entry(f"{recipe.model.mlp.activation} MLP", recipe.model.mlp, "activation")
            ],
        ),
        Technique(
            name="leaky-relu",
            summary="leaky ReLU (ReLU in its place)",
            without=setting(model__mlp__activation="relu-squared"),
        ),
    )

    def spec(self, model: ModelRecipe, layer: VirtualLayer) -> ComponentSpec:
        """Two matrices."""
        dim, hidden, prefix = model.dim, model.mlp_dim, f"{layer.block}.mlp"
        start = matrix_init(model, hidden, dim)
        return total(
            linear(f"{prefix}.fc.weight", hidden, dim, "mlp", start),
            linear(f"{prefix}.proj.weight", dim, hidden, "mlp", ZEROS),
        )

    def slope(self, model: ModelRecipe) -> float:
        """Of the activation left of zero."""
        return 0.0 if model.mlp.activation == "relu-squared" else model.mlp.slope

    def forward(self, block: Any, u: Tensor, model: ModelRecipe) -> Tensor:
        """u (B, T, D) -> W_2 act(W_1 u)^2."""
        from torch.nn.functional import leaky_relu, relu

        hidden, slope = block.mlp.fc(u), self.slope(model)
        active = leaky_relu(hidden, slope) if slope else relu(hidden)
        out: Tensor = block.mlp.proj(active.square())
        return out


MLP = Mlp()
