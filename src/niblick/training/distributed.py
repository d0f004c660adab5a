"""Many processes, one run: gradients summed in a few flat buckets, Muon's work shared, the clock
agreed upon, work done in turn.

With one process every function here is the identity. Processes are those of torchrun; gloo joins
them on the CPU, NCCL on GPUs.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from niblick.errors import NiblickError, NiblickWarning, TrainingError
from niblick.runtime import World, choose_device

T = TypeVar("T")
_LOOK, _MINUTE = 0.05, 60.0  # seconds
BUCKET = 1 << 24  # elements summed by one call


def sum_over(world: World, flat: Tensor) -> None:
    """Sum a contiguous buffer over all processes, in place, bucket by bucket."""
    if world.size > 1:
        for part in torch.split(flat.view(-1), BUCKET):
            dist.all_reduce(part)


def mean_over(world: World, flat: Tensor) -> None:
    """Average a contiguous buffer over all processes, in place."""
    if world.size > 1:
        sum_over(world, flat)
        flat.div_(world.size)


def agree(world: World, device: str, seconds: float, stop: int = 0) -> tuple[float, int]:
    """The first process's seconds, and the signal that stopped any: the same everywhere."""
    if world.size == 1:
        return seconds, stop
    shared = torch.tensor(
        [seconds if world.is_main else 0.0, float(stop)], dtype=torch.float64, device=device
    )
    dist.all_reduce(shared, dist.ReduceOp.MAX)
    return float(shared[0]), int(shared[1])


def _broadcast_patiently(flag: Tensor, world: World) -> None:
    """The main process's flag, for which the others may have to wait long."""
    work, began, told = dist.broadcast(flag, 0, async_op=True), time.monotonic(), 0
    assert work is not None
    while not world.is_main and not work.is_completed():
        time.sleep(_LOOK)
        minutes = int((time.monotonic() - began) / _MINUTE)
        if minutes > told:
            told = minutes
            warnings.warn(
                f"process {world.rank} has waited {minutes} min for what the main one does alone",
                NiblickWarning,
                stacklevel=3,
            )
    work.wait()


def in_turn(world: World, work: Callable[[], T], *, main_only: bool = False) -> T:
    """`work` in the main process first, then in the others (not at all with `main_only`).

    Where the main process fails, the others fail too instead of waiting for ever; while it works,
    they say once a minute that they wait.
    """
    if world.size == 1:
        return work()
    failure: NiblickError | None = None
    result: T | None = None
    if world.is_main:
        try:
            result = work()
        except NiblickError as error:
            failure = error
    flag = torch.tensor([int(failure is not None)], device=choose_device(world))
    _broadcast_patiently(flag, world)
    if failure is not None:
        raise failure
    if flag.item():
        raise TrainingError("the main process could not go on; its message says why")
    return result if world.is_main or main_only else work()  # type: ignore[return-value]
