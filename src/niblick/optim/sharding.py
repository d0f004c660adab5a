"""A group's matrices divided between processes: gradients reduced to their owners, updates gathered
from them, both while something else is computed.

Every process owns the same number of matrices of each stack, the last ones perhaps fewer. A sum is
that of all processes' gradients in the type that they are sent in; all get the same bits back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from niblick.optim.buffers import Stack

# Their names since torch 2.13; the older ones are deprecated.
_SCATTER: Any = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
_GATHER: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
Waiting = Callable[[], None]


class Processes(Protocol):
    """The processes of a run as an optimizer sees them; each call begins work and returns at
    once with what waits for it.
    """

    rank: int
    size: int

    def scatter(self, out: Tensor, parts: Tensor) -> Waiting:
        """`out` becomes the sum, over all, of part `rank` of their `parts` (size, *out.shape)."""
        ...

    def gather(self, out: Tensor, own: Tensor) -> Waiting:
        """`out` (size, *own.shape) becomes every process's `own`."""
        ...

    def sum(self, tensor: Tensor) -> Waiting:
        """`tensor` becomes its sum over all processes."""
        ...

    def sum_at(self, owner: int, tensor: Tensor) -> Waiting:
        """The same in process `owner` alone; what others have is meaningless afterwards."""
        ...

    def sum_exactly(self, tensor: Tensor) -> None:
        """The same, in `tensor`'s own type and at once."""
        ...


class Launched:
    """Processes of torchrun, all of them or those of `group`; gradients are sent as `dtype`."""

    def __init__(
        self, rank: int, size: int, dtype: torch.dtype = torch.float32, group: Any = None
    ) -> None:
        self.rank, self.size, self.dtype, self._group = rank, size, dtype, group

    def scatter(self, out: Tensor, parts: Tensor) -> Waiting:
        """See `Processes.scatter`."""
        sent = parts.to(self.dtype).view(-1)
        got = torch.empty(out.numel(), dtype=self.dtype, device=out.device)
        work = _SCATTER(got, sent, group=self._group, async_op=True)

        def wait() -> None:
            work.wait()
            out.copy_(got.view(out.shape))

        return wait

    def gather(self, out: Tensor, own: Tensor) -> Waiting:
        """See `Processes.gather`; updates are sent as they are."""
        work = _GATHER(out.view(-1), own.reshape(-1), group=self._group, async_op=True)
        return lambda: work.wait()

    def sum(self, tensor: Tensor) -> Waiting:
        """See `Processes.sum`."""
        sent = tensor.to(self.dtype)
        work = dist.all_reduce(sent, group=self._group, async_op=True)
        assert work is not None

        def wait() -> None:
            work.wait()
            if sent is not tensor:
                tensor.copy_(sent)

        return wait

    def sum_at(self, owner: int, tensor: Tensor) -> Waiting:
        """See `Processes.sum_at`."""
        sent = tensor.to(self.dtype)
        to = owner if self._group is None else dist.get_global_rank(self._group, owner)
        work = dist.reduce(sent, to, group=self._group, async_op=True)
        assert work is not None

        def wait() -> None:
            work.wait()
            if self.rank == owner and sent is not tensor:
                tensor.copy_(sent)

        return wait

    def sum_exactly(self, tensor: Tensor) -> None:
        """See `Processes.sum_exactly`."""
        dist.all_reduce(tensor, group=self._group)


@dataclass(frozen=True)
class Share:
    """What one process owns of a stack: matrices first .. last of it, of `each` for every
    process.
    """

    stack: Stack
    first: int
    last: int
    each: int

    @property
    def count(self) -> int:
        """How many matrices it owns; the last processes may own none."""
        return self.last - self.first

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.stack.rows, self.stack.columns

    def view(self, flat: Tensor) -> Tensor:
        """Its own matrices (count, rows, columns) inside the group's part `flat`."""
        return self.stack.view(flat)[self.first : self.last]


@dataclass(frozen=True)
class Bucket:
    """Gradients that are sent together: the parameters `slots` of the layout. `send` begins to make
    them the mean over all processes; of matrices that one process owns, there alone.
    """

    slots: range
    send: Callable[[], Waiting]


class Shards:
    """The stacks of a group, divided; without `processes`, one process owns all."""

    def __init__(self, stacks: Sequence[Stack], processes: Processes | None) -> None:
        self._processes = processes
        rank, size = (processes.rank, processes.size) if processes else (0, 1)
        self.shares = tuple(_share(stack, rank, size) for stack in stacks)

    @property
    def divided(self) -> bool:
        """Whether there are several processes."""
        return self._processes is not None

    def reduce(self, gradients: Tensor) -> Iterator[Waiting]:
        """Begin to make the own matrices of flat `gradients` the mean over all processes; what
        others own is meaningless afterwards.
        """
        processes = self._processes
        if processes is None:
            return
        for share in self.shares:
            stack = share.stack
            parts = self._padded(share, stack.view(gradients))
            out = torch.empty_like(parts[0], dtype=gradients.dtype)
            yield _then(
                processes.scatter(out, parts), self._taken, share, gradients, out, processes.size
            )

    def buckets(self, gradients: Tensor, first: int) -> Iterator[Bucket]:
        """The matrices of each owner, stack by stack; slot `first` is the group's first."""
        processes = self._processes
        assert processes is not None
        for share in self.shares:
            matrices, size = share.stack.view(gradients), processes.size
            for owner in range(size):
                theirs = _share(share.stack, owner, size)
                if theirs.count:
                    part = matrices[theirs.first : theirs.last]
                    send = partial(mean_at, processes, owner, part)
                    yield Bucket(range(first + theirs.first, first + theirs.last), send)
            first += share.stack.count

    def _taken(self, share: Share, gradients: Tensor, mean: Tensor, size: int) -> None:
        share.view(gradients).copy_(mean[: share.count]).div_(size)

    def _padded(self, share: Share, whole: Tensor) -> Tensor:
        """(size, each, rows, columns) of a stack's matrices, zeros behind the last."""
        assert self._processes is not None
        size, count = self._processes.size, share.stack.count
        missing = size * share.each - count
        if missing:
            whole = torch.cat([whole, whole.new_zeros(missing, *whole.shape[1:])])
        return whole.reshape(size, share.each, *whole.shape[1:])

    def gather(self, share: Share, own: Tensor) -> tuple[Tensor, Waiting]:
        """All matrices of the share's stack, of which `own` (count, rows, columns) are this
        process's, once the wait is over.
        """
        processes = self._processes
        if processes is None:
            return own, lambda: None
        missing = share.each - share.count
        if missing:
            own = torch.cat([own, own.new_zeros(missing, *own.shape[1:])])
        out = own.new_empty(processes.size, *own.shape)
        waiting = processes.gather(out, own.contiguous())
        return out.flatten(0, 1)[: share.stack.count], waiting

    def complete(self, flat: Tensor) -> None:
        """Make state of which every process has kept its own matrices whole in all of them."""
        for share in self.shares:
            whole, wait = self.gather(share, share.view(flat))
            wait()
            share.stack.view(flat).copy_(whole)


def mean_at(processes: Processes, owner: int | None, tensor: Tensor) -> Waiting:
    """`tensor` becomes its mean over all processes, at its owner or (None) everywhere."""
    if owner is None:
        wait = processes.sum(tensor)
    else:
        wait = processes.sum_at(owner, tensor)
    return _then(wait, lambda: tensor.div_(processes.size))


def _share(stack: Stack, rank: int, size: int) -> Share:
    each = -(-stack.count // size)
    first, last = (min(stack.count, each * n) for n in (rank, rank + 1))
    return Share(stack, first, last, each)


def _then(wait: Waiting, do: Callable[..., object], *arguments: Any) -> Waiting:
    def both() -> None:
        wait()
        do(*arguments)

    return both
