"""Attention by flash-attn, where that package is installed: each document is a sequence of its own.

`flash_attn_varlen_func` takes the sequences of a batch one behind the other, and where each begins.
What it does not take (float32, wide or odd heads) goes to flex_attention.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from niblick.errors import NiblickWarning
from niblick.model.flex import Attend

TYPES = (torch.float16, torch.bfloat16)
WIDEST = 256  # head that the kernels take, in multiples of 8
# Room is kept for so many documents, and for one more in so many tokens of a pass.
FEW, SHORTEST = 256, 16


def flash_attention() -> Callable[..., Any] | None:
    """The package's function; None where it is not installed, or (with a warning) is broken."""
    if find_spec("flash_attn") is None:
        return None
    try:
        found = import_module("flash_attn").flash_attn_varlen_func
    except (ImportError, OSError, AttributeError) as error:
        reason = " ".join(str(error).split())[:160]
        warnings.warn(f"flash-attn is not used: {reason}", NiblickWarning, stacklevel=2)
        return None
    return found  # type: ignore[no-any-return]


class VarlenAttend(Attend):
    """As `Attend`, by flash-attn's `function`."""

    def __init__(self, function: Callable[..., Any], first: Tensor | None = None) -> None:
        super().__init__(first)
        self._function = function
        self._starts: Tensor | None = None

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, span: int) -> Tensor:
        """See `Attend`; q, k and v of one type."""
        batch, heads, length, width = q.shape
        if q.dtype not in TYPES or width % 8 or width > WIDEST:
            return super().__call__(q, k, v, span)
        if self._starts is None:
            self._starts = sequence_starts(self._first, batch, length, q.device)
        packed = (t.transpose(1, 2).reshape(batch * length, -1, width) for t in (q, k, v))
        starts = self._starts
        # How many earlier and later positions are seen; -1 is all, of the causal ones.
        window = (-1, -1) if span >= length else (span - 1, 0)
        sizes = starts, starts, length, length
        out = self._function(*packed, *sizes, causal=True, window_size=window)
        return out.view(batch, length, heads, width).transpose(1, 2)  # type: ignore[no-any-return]


def sequence_starts(first: Tensor | None, batch: int, length: int, device: torch.device) -> Tensor:
    """Where each sequence begins in rows (B, T) one behind the other, int32, and the end; as many
    numbers whatever documents there are, those that are not needed at the end too.

    `first` (B, T): the first position of each position's document. Where there are more documents
    than room is kept for, an assertion on the device ends the program.
    """
    total = batch * length
    if first is None:
        return torch.arange(0, total + 1, length, dtype=torch.int32, device=device)
    room = min(total, FEW + total // SHORTEST)
    places = torch.arange(total, dtype=torch.int32, device=device)
    begins = (first == torch.arange(length, device=device)).flatten()
    torch._assert_async(begins.sum() <= room, "documents are too short for flash-attn; remove it")
    starts = torch.where(begins, places, total).sort().values[:room]
    return torch.cat([starts, starts.new_full((1,), total)])
