"""A virtual layer: one visit of a weight block, with everything that this visit does."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class VirtualLayer:
    """One step of the loop over the plan.

    `block` names the weights; `scalars` prefixes the scales and the residual mix (the block itself,
    or `vlayers.i`). `scale` multiplies both normalised inputs. `span` is how many positions
    attention sees, the current one included (0 for mixers without attention). `pop` is the index of
    the skip weight, or None.
    """

    index: int
    block: str
    scalars: str
    mixer: str
    span: int = 0
    scale: float = 1.0
    xsa: bool = False
    value_embedding: bool = False
    sidecar_site: int | None = None
    push: bool = False
    pop: int | None = None

    @property
    def gains(self) -> str:
        """Prefix of the per-head gains: inside the block's attention, or with the virtual layer's
        scalars.
        """
        return f"{self.block}.attn" if self.scalars == self.block else self.scalars
