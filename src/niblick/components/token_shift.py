"""Token shift (systems.md section 1): a gated channel mix of a position and the one before it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from niblick.components.base import (
    MIXERS,
    ZEROS,
    Call,
    Changes,
    ComponentSpec,
    Init,
    Mixer,
    StateEntry,
    Technique,
    VirtualLayer,
    linear,
    matrix_init,
    total,
    vector,
)

if TYPE_CHECKING:
    from torch import Tensor

    from niblick.recipe import Recipe
    from niblick.recipe.model import ModelRecipe


def _windows_instead(recipe: Recipe) -> Changes:
    """The recipe's own first window, else 128, where it has token shift."""
    found = [spec.window for segment in recipe.model.stack for spec in segment.blocks]
    window = next((each for each in found if each), 128)
    return rewritten_stack(recipe, r"^token-shift", f"window:{window}")


def rewritten_stack(recipe: Recipe, pattern: str, replacement: str) -> Changes:
    """The stack with every layer's text rewritten by a regular expression."""
    stack = recipe.model_dump(mode="json")["model"]["stack"]
    for segment in stack:
        segment["layers"] = [re.sub(pattern, replacement, text) for text in segment["layers"]]
    return {"model.stack": stack}


class TokenShift(Mixer):
    """sigmoid(W_r r) * (W_v relu(W_k k)^2), r and k interpolating u and prev(u)."""

    techniques = (
        Technique(
            name="token-shift",
            summary="token-shift layers (window attention in their place)",
            without=_windows_instead,
        ),
    )

    def spec(self, model: ModelRecipe, layer: VirtualLayer) -> ComponentSpec:
        """Three D x D maps, two mixes, one vector of state."""
        dim, prefix = model.dim, f"{layer.block}.mixer"
        start = matrix_init(model, dim, dim)
        mix = Init(kind="constant", value=model.token_shift.mix)
        mixes = (vector(f"{prefix}.{name}", (dim,), "mixer", mix) for name in ("mix_r", "mix_k"))
        state = StateEntry(name=f"layers.{layer.index}.shift", shape=(dim,))
        return total(
            ComponentSpec(parameters=tuple(mixes), state=(state,)),
            linear(f"{prefix}.W_r.weight", dim, dim, "mixer", start),
            linear(f"{prefix}.W_k.weight", dim, dim, "mixer", start),
            linear(f"{prefix}.W_v.weight", dim, dim, "mixer", ZEROS),
        )

    def forward(self, block: Any, u: Tensor, layer: VirtualLayer, call: Call) -> Tensor:
        """u (B, T, D) -> sigmoid(W_r r) * (W_v relu(W_k k)^2)."""
        from torch import relu, sigmoid

        from niblick.components.functional import previous

        weights, name = block.mixer, f"layers.{layer.index}.shift"
        before = previous(u, call.last(name), call.boundary)
        call.remember(name, u[:, -1])
        r = before.lerp(u, sigmoid(weights.mix_r).to(u.dtype))
        k = before.lerp(u, sigmoid(weights.mix_k).to(u.dtype))
        mixed: Tensor = sigmoid(weights.W_r(r)) * weights.W_v(relu(weights.W_k(k)).square())
        return mixed

    def reach(self, model: ModelRecipe, layer: VirtualLayer, context: int) -> int:
        """One position."""
        return 1


MIXERS.register("token-shift")(TokenShift())
