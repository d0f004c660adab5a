"""Operations on fused kernels: each reads and writes its tensors once, forward and backward.

Equal to `Ops` up to rounding. What the kernels do not cover (decode state, other devices and
dtypes, odd layouts) falls back to the plain form.
"""

from __future__ import annotations

import torch
from torch import Tensor

from niblick.model.kernels import attention, sidecar
from niblick.model.kernels import functions as fused
from niblick.model.kernels.library import DTYPES, MAPS, PANEL, Kernels
from niblick.model.ops import Factors, Ops
from niblick.model.tree import Linear

MAX_WIDTH = 16384  # rows are staged on the stack as float
MAX_CAP = 40.0  # e^(-2 cap) is still a normal float


class FusedOps(Ops):
    """The operations of `Ops`, fused where tensors are contiguous float32 or bfloat16 on the
    CPU.
    """

    def __init__(self, kernels: Kernels) -> None:
        self.kernels = kernels

    def lookup(self, ids: Tensor, table: Tensor, dtype: torch.dtype) -> Tensor:
        """As in `Ops`."""
        if not self._table(ids, table, dtype):
            return super().lookup(ids, table, dtype)
        rows: Tensor = fused.Lookup.apply(self.kernels, ids, table, dtype)  # type: ignore[no-untyped-call]
        return rows

    def embed(
        self,
        ids: Tensor,
        table: Tensor,
        dtype: torch.dtype,
        branch: Tensor | None,
        share: Tensor | None,
        factors: Factors,
    ) -> Tensor:
        """As in `Ops`."""
        alike = branch is None or (_fits(branch) and branch.dtype is dtype)
        plain = all(
            f is None or (f.dtype is torch.float32 and f.is_contiguous()) for f in (share, *factors)
        )
        if not (alike and plain and self._table(ids, table, dtype)):
            return super().embed(ids, table, dtype, branch, share, factors)
        n: Tensor = fused.Embed.apply(self.kernels, ids, table, dtype, branch, share, factors)  # type: ignore[no-untyped-call]
        return n

    def mix_norm(
        self, x: Tensor, x0: Tensor, mix: Tensor | None, scale: float
    ) -> tuple[Tensor, Tensor]:
        """As in `Ops`."""
        if not _fits(x, x0):
            return super().mix_norm(x, x0, mix, scale)
        mixed, n = fused.MixNorm.apply(self.kernels, x, x0, mix, scale)  # type: ignore[no-untyped-call]
        return (x if mix is None else mixed), n

    def add_norm(
        self, x: Tensor, branch: Tensor, weight: Tensor, scale: float
    ) -> tuple[Tensor, Tensor]:
        """As in `Ops`."""
        if not _fits(x, branch):
            return super().add_norm(x, branch, weight, scale)
        y, n = fused.AddNorm.apply(self.kernels, x, branch, weight, scale)  # type: ignore[no-untyped-call]
        return y, n

    def add(self, x: Tensor, branch: Tensor, weight: Tensor) -> Tensor:
        """As in `Ops`."""
        if not _fits(x, branch):
            return super().add(x, branch, weight)
        y: Tensor = fused.AddNorm.apply(self.kernels, x, branch, weight, None)[0]  # type: ignore[no-untyped-call]
        return y

    def interpolate(
        self, u: Tensor, last: Tensor | None, boundary: Tensor | None, first: Tensor, second: Tensor
    ) -> tuple[Tensor, Tensor]:
        """As in `Ops`."""
        if last is not None or not _fits(u):
            return super().interpolate(u, last, boundary, first, second)
        one, two = fused.Shift.apply(self.kernels, u, _flags(boundary), first, second)  # type: ignore[no-untyped-call]
        return one, two

    def square(self, x: Tensor, slope: float) -> Tensor:
        """As in `Ops`."""
        if not _fits(x):
            return super().square(x, slope)
        y: Tensor = fused.Square.apply(self.kernels, x, slope)  # type: ignore[no-untyped-call]
        return y

    def channel(
        self,
        x: Tensor,
        branch: Tensor,
        weight: Tensor,
        scale: float,
        up: Linear,
        down: Linear,
        share: Tensor,
        slope: float,
    ) -> Tensor:
        """As in `Ops`."""
        if not (_fits(x, branch) and self._maps_fit(x, (up, down))):
            return super().channel(x, branch, weight, scale, up, down, share, slope)
        y: Tensor = fused.Channel.apply(  # type: ignore[no-untyped-call]
            self.kernels, x, branch, weight, scale, up.weight, down.weight, share, slope
        )
        return y

    def token_shift(
        self,
        u: Tensor,
        last: Tensor | None,
        boundary: Tensor | None,
        mixes: tuple[Tensor, Tensor],
        maps: tuple[Linear, Linear, Linear],
    ) -> Tensor:
        """As in `Ops`."""
        if last is not None or not self._maps_fit(u, maps):
            return super().token_shift(u, last, boundary, mixes, maps)
        weights = (each.weight for each in maps)
        y: Tensor = fused.TokenShift.apply(self.kernels, u, _flags(boundary), *mixes, *weights)  # type: ignore[no-untyped-call]
        return y

    def maps(self, x: Tensor, maps: tuple[Linear, ...]) -> tuple[Tensor, ...]:
        """As in `Ops`."""
        if not self._maps_fit(x, maps):
            return super().maps(x, maps)
        weights = (each.weight for each in maps)
        out: tuple[Tensor, ...] = fused.Maps.apply(self.kernels, x, *weights)  # type: ignore[no-untyped-call]
        return out

    def gate(self, gate: Tensor, x: Tensor) -> Tensor:
        """As in `Ops`."""
        if not _fits(gate, x):
            return super().gate(gate, x)
        y: Tensor = fused.Gate.apply(self.kernels, gate, x)  # type: ignore[no-untyped-call]
        return y

    def nll(self, z: Tensor, targets: Tensor, cap: float | None) -> Tensor:
        """As in `Ops`."""
        if not _fits(z) or not self._below(targets, z.shape[-1]):
            return super().nll(z, targets, cap)
        y: Tensor = fused.Nll.apply(self.kernels, z, targets.contiguous(), cap or 0.0)  # type: ignore[no-untyped-call]
        return y

    def head_loss(
        self, hidden: Tensor, weight: Tensor, targets: Tensor, cap: float | None
    ) -> Tensor:
        """As in `Ops`."""
        words, width = weight.shape
        takes = width % 16 == 0 and words % 2 == 0 and self._below(targets, words)
        if not (_pairs(self.kernels, hidden) and cap and 0 < cap <= MAX_CAP and takes):
            return super().head_loss(hidden, weight, targets, cap)
        y: Tensor = fused.HeadLoss.apply(self.kernels, hidden, weight, targets.contiguous(), cap)  # type: ignore[no-untyped-call]
        return y

    def smear(
        self, x: Tensor, last: Tensor | None, boundary: Tensor | None, gate: Tensor
    ) -> Tensor:
        """As in `Ops`."""
        if last is not None or not _fits(x):
            return super().smear(x, last, boundary, gate)
        y: Tensor = fused.Shift.apply(self.kernels, x, _flags(boundary), 1 - gate, None)[0]  # type: ignore[no-untyped-call]
        return y

    def exclude(self, y: Tensor, v: Tensor) -> Tensor:
        """As in `Ops`."""
        if not _fits(y, v):
            return super().exclude(y, v)
        out: Tensor = attention.Exclude.apply(self.kernels, y, v)  # type: ignore[no-untyped-call]
        return out

    def shift_mix(
        self, x: Tensor, last: Tensor | None, boundary: Tensor | None, mix: Tensor
    ) -> Tensor:
        """As in `Ops`."""
        if last is not None or not _fits(x):
            return super().shift_mix(x, last, boundary, mix)
        wide = mix.repeat_interleave(x.shape[-1])
        y: Tensor = sidecar.ShiftMix.apply(self.kernels, x.flatten(2), _flags(boundary), wide)  # type: ignore[no-untyped-call]
        return y.view(x.shape)

    def local_value(self, y: Tensor, v: Tensor, mix: Tensor) -> Tensor:
        """As in `Ops`."""
        if not _fits(y, v):
            return super().local_value(y, v, mix)
        out: Tensor = sidecar.LocalValue.apply(self.kernels, y, v, mix)  # type: ignore[no-untyped-call]
        return out

    def gated_filter(
        self,
        values: Tensor,
        gate: Tensor,
        site: Tensor,
        weight: Tensor,
        last: Tensor | None,
        boundary: Tensor | None,
    ) -> Tensor:
        """As in `Ops`."""
        if last is not None or not _fits(values, gate):
            return super().gated_filter(values, gate, site, weight, last, boundary)
        y: Tensor = sidecar.GatedFilter.apply(
            self.kernels, values, gate, site, weight, _flags(boundary)
        )  # type: ignore[no-untyped-call]
        return y

    def heads(self, x: Tensor, gain: Tensor | None, table: tuple[Tensor, Tensor]) -> Tensor:
        """As in `Ops`."""
        if not _fits(x):
            return super().heads(x, gain, table)
        y: Tensor = attention.Heads.apply(self.kernels, x, gain, *table)  # type: ignore[no-untyped-call]
        return y

    def project(
        self,
        u: Tensor,
        maps: tuple[Linear, Linear, Linear],
        gains: tuple[Tensor | None, Tensor | None],
        table: tuple[Tensor, Tensor],
        width: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As in `Ops`."""
        if not self._maps_fit(u, maps):
            return super().project(u, maps, gains, table, width)
        weights = (each.weight for each in maps)
        q, k, v = attention.Project.apply(self.kernels, u, *gains, *table, width, *weights)  # type: ignore[no-untyped-call]
        return q, k, v

    def attend(self, q: Tensor, k: Tensor, v: Tensor, span: int) -> Tensor:
        """As in `Ops`."""
        if not _fits(q, k, v) or q.shape[2] > MAX_WIDTH:
            return super().attend(q, k, v, span)
        return attention.attend(self.kernels, q, k, v, span)

    def _maps_fit(self, x: Tensor, maps: tuple[Linear, ...]) -> bool:
        """Whether the kernels take the maps, of x or of what it becomes; nothing may wait for them
        to be called, as adapters do.
        """
        weights = [each.weight for each in maps]
        whole = len(maps) <= MAPS and all(
            size % PANEL == 0 and size <= MAX_WIDTH for w in weights for size in w.shape
        )
        bare = not any(each._forward_hooks for each in maps)
        return whole and bare and _pairs(self.kernels, x, *weights)

    def _table(self, ids: Tensor, table: Tensor, dtype: torch.dtype) -> bool:
        """Whether the kernels look rows up; plain torch says what is wrong with an id that has no
        row.
        """
        whole = (
            _fits(table)
            and table.dtype is torch.float32
            and dtype in DTYPES
            and ids.is_contiguous()
        )
        return whole and self._below(ids, len(table))

    def _below(self, ids: Tensor, count: int) -> bool:
        """Whether ids are at least 0 and below `count`; who captures a computation sees to it that
        those of each call are.
        """
        if ids.dtype is not torch.int64 or ids.numel() == 0:
            return False
        return self.kernels.capture is not None or within(ids, count)


def within(ids: Tensor, count: int) -> bool:
    """Whether all ids are at least 0 and below `count`."""
    low, high = torch.aminmax(ids)
    return int(low) >= 0 and int(high) < count


def _flags(boundary: Tensor | None) -> Tensor | None:
    return None if boundary is None else boundary.contiguous().view(torch.uint8)


def _pairs(kernels: Kernels, *tensors: Tensor) -> bool:
    """Whether the kernels on pairs of bfloat16 take the tensors."""
    return kernels.attends and tensors[0].dtype is torch.bfloat16 and _fits(*tensors)


def _fits(*tensors: Tensor) -> bool:
    first = tensors[0]
    return (
        all(
            t.is_contiguous()
            and t.device.type == "cpu"
            and t.dtype == first.dtype
            and t.shape[-1] <= MAX_WIDTH
            for t in tensors
        )
        and first.dtype in DTYPES
    )
