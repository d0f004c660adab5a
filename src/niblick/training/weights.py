"""A run's weights twice: float32 masters in one flat buffer, and the copies that forward and
backward use.

The copies are the model's own parameters: matrices in the compute precision, everything else
float32, all rewritten from the masters (or from their average) once per step. Late QAT is a
property of the copy: it holds `round_trip(weight)`, or the weight and the codec's errors as noise,
and the gradient there is applied to the master, which is the straight-through estimator.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from operator import itemgetter

import numpy as np
import torch
from torch import Tensor

from niblick.codecs.base import QUANTIZED_ROLES
from niblick.compression import RoundingSpec, round_trip
from niblick.model import LanguageModel
from niblick.model.kernels import Kernels
from niblick.model.kernels.library import DTYPES
from niblick.optim import LOW_PRECISION, Layout
from niblick.training.device import send


class Weights:
    """Master buffer and compute copies of `model`, whose parameters become views of the copies."""

    def __init__(
        self,
        model: LanguageModel,
        layout: Layout,
        *,
        dtype: torch.dtype,
        specs: Mapping[str, RoundingSpec],
    ) -> None:
        self.layout, self.specs = layout, dict(specs)
        self.parameters = [dict(model.named_parameters())[slot.name] for slot in layout.slots]
        self.master = torch.cat([p.detach().float().reshape(-1) for p in self.parameters])
        low = [slot.role in LOW_PRECISION for slot in layout.slots]
        size = sum(slot.size for slot, is_low in zip(layout.slots, low, strict=True) if is_low)
        self._low = torch.empty(size, dtype=dtype, device=self.master.device)
        self._high = torch.empty(layout.total - size, device=self.master.device)
        self._runs: list[tuple[Tensor, slice]] = []
        self._views: list[Tensor] = []
        self._kernels: Kernels | None = None
        self.errors: Tensor | None = None  # of the codec, flat, once they are known
        self._places = torch.tensor(
            [[slot.start for slot in layout.slots], [slot.size for slot in layout.slots]]
        )
        self._lay_out(low)
        self.refresh()

    def _lay_out(self, low: list[bool]) -> None:
        """Point every parameter into the copy of its precision; neighbours are copied as one."""
        used = {True: 0, False: 0}
        for is_low, run in groupby(
            zip(low, self.layout.slots, self.parameters, strict=True), key=itemgetter(0)
        ):
            members = list(run)
            first, last = members[0][1], members[-1][1]
            part = slice(first.start, last.start + last.size)
            start = used[is_low]
            used[is_low] += part.stop - part.start
            copy = (self._low if is_low else self._high)[start : used[is_low]]
            self._runs.append((copy, part))
            for _, slot, parameter in members:
                at = slot.start - part.start
                parameter.data = copy[at : at + slot.size].view(slot.shape)
                self._views.append(parameter.data)

    @torch.no_grad()
    def refresh(
        self,
        source: Tensor | None = None,
        *,
        rounded: bool = False,
        noise: tuple[int, int] | None = None,
    ) -> None:
        """Rewrite the copies from `source` (flat; the masters if None), rounded as by the codec;
        `noise` seeds the signs with which its errors are added, once they are known.
        """
        flat = self.master if source is None else source
        for copy, part in self._runs:
            copy.copy_(flat[part])
        if self.errors is not None and noise is not None:
            self._disturb(flat, self.errors, noise)
        if not rounded:
            return
        for slot, view in zip(self.layout.slots, self._views, strict=True):
            if slot.name in self.specs:
                view.copy_(round_trip(slot.view(flat), self.specs[slot.name]))

    def _disturb(self, flat: Tensor, errors: Tensor, seed: tuple[int, int]) -> None:
        """Add every row's errors, or subtract them."""
        generator = np.random.default_rng(seed)
        pairs = zip(self.layout.slots, self._views, strict=True)
        chosen = [(slot, view) for slot, view in pairs if slot.role in QUANTIZED_ROLES]
        sizes = [slot.shape[0] for slot, _ in chosen]
        drawn = [generator.integers(0, 2, size=(size, 1), dtype=np.int8) for size in sizes]
        every = 2 * send(torch.from_numpy(np.concatenate(drawn)), flat.device).to(flat.dtype) - 1
        for (slot, view), signs in zip(chosen, torch.split(every, sizes), strict=True):
            weight, error = (slot.view(t).view(slot.shape[0], -1) for t in (flat, errors))
            view.view(weight.shape).copy_(torch.addcmul(weight, error, signs))

    def use(self, kernels: Kernels | None) -> None:
        """Take the compiled form of `collect` (None: plain torch)."""
        self._kernels = kernels

    @torch.no_grad()
    def collect(self, gradients: Tensor, *, add: bool) -> None:
        """Move the parameters' gradients into the flat float32 buffer, adding to it for later
        micro-batches.
        """
        found = [parameter.grad for parameter in self.parameters]
        for parameter in self.parameters:
            parameter.grad = None
        if self._kernels is not None and all(
            g is None or (g.is_contiguous() and g.dtype in DTYPES) for g in found
        ):
            from_, kinds = torch.tensor(
                [[0, 0] if g is None else [g.data_ptr(), g.element_size()] for g in found]
            ).T.contiguous()
            self._kernels(
                "collect", gradients.dtype, from_, kinds, *self._places, gradients, add, len(found)
            )
            return
        if not add and any(slope is None for slope in found):
            gradients.zero_()
        pairs = zip(self.layout.slots, found, strict=True)
        given = [(slot.view(gradients), slope) for slot, slope in pairs if slope is not None]
        targets, slopes = [target for target, _ in given], [slope for _, slope in given]
        torch._foreach_add_(targets, slopes) if add else torch._foreach_copy_(targets, slopes)
