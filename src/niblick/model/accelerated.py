"""The model's parts for accelerators: plain equations, with attention and the head's loss replaced.

All else is left to the compiler, which fuses it. `accelerate` rewrites a built model as
`use_kernels` does on a CPU; a call with decode state, or a model with adapters, is computed by the
plain form.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from niblick.components import Call
from niblick.model.ensemble import members_of
from niblick.model.equations import Equations
from niblick.model.head import fused_head_loss
from niblick.model.lm import LanguageModel


class Accelerated(Equations):
    """What an accelerator computes otherwise than `Equations` says it."""

    fuses_heads = True

    def __init__(self, *, installed: bool = False) -> None:
        """With `installed`, attention is flash-attn's where that package is."""
        from niblick.model import flex, varlen  # take a second to import

        self._attend: Callable[[Tensor | None], flex.Attend] = flex.Attend
        self._least_width = flex.LEAST_WIDTH
        if installed and (function := varlen.flash_attention()) is not None:
            self._attend = partial(varlen.VarlenAttend, function)

    def takes(self, call: Call) -> bool:
        """Every call of a model whose heads are wide enough; autocast changes types in between."""
        wide = call.model.head_dim >= self._least_width
        return wide and not torch.is_autocast_enabled(call.tokens.device.type)

    def embed(self, call: Call) -> Tensor:
        """As in `Equations`; attention is decided here, for all layers of the call."""
        call.attend = self._attend(call.document_first)
        return super().embed(call)

    def head_loss(
        self, hidden: Tensor, weight: Tensor, targets: Tensor, cap: float | None
    ) -> Tensor:
        """As in `Equations`, without a whole batch's logits."""
        return fused_head_loss(hidden, weight, targets, cap)


def accelerate(model: LanguageModel) -> bool:
    """Put the accelerator's parts into a model that is on one; whether they are in use."""
    if model.device.type != "cuda":
        return False
    for member in members_of(model):
        member.kernels = Accelerated(installed=True)
    return True
