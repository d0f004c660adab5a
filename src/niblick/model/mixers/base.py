"""What every mixer is given besides its input, and the registry of mixers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from niblick.model.ops import Ops
from niblick.model.state import State
from niblick.plan import VirtualLayer
from niblick.recipe.model import ModelRecipe
from niblick.registry import Registry


@dataclass
class Context:
    """One call's surroundings: the recipe, the state before it, and where the state after it is
    collected.

    `boundary` (B, T): true where a document begins, None without masking. `document_first` (B, T):
    absolute position at which each token's document begins, None when attention runs across
    documents. `dtype` is that of the residual stream, `ops` what runs between its matrix products.
    `factors`, by table: what dropout multiplies its rows by, (B, T, 1).
    """

    model: ModelRecipe
    root: nn.Module
    tokens: Tensor
    boundary: Tensor | None
    rotary: tuple[Tensor, Tensor]
    before: State | None
    span_limit: int
    position: int
    keep: bool
    dtype: torch.dtype = torch.float32
    ops: Ops = field(default_factory=Ops)
    document_first: Tensor | None = None
    value_embedding: Tensor | None = None
    factors: Mapping[str, Tensor] = field(default_factory=dict)
    after: dict[str, Tensor] = field(default_factory=dict)

    def last(self, name: str) -> Tensor | None:
        """A state entry before this call, None at the start."""
        return None if self.before is None else self.before.tensors[name]

    def remember(self, name: str, value: Tensor) -> None:
        """Collect a state entry after this call, copied if it is a view: a state keeps no longer
        tensor alive.
        """
        if self.keep:
            self.after[name] = (
                value if value.untyped_storage().nbytes() == value.nbytes else value.clone()
            )


Mixer = Callable[["nn.Module", Tensor, VirtualLayer, Context], Tensor]
MIXERS: Registry[Mixer] = Registry("mixer")

__all__ = ["MIXERS", "Context", "Mixer"]
