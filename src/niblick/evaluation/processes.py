"""Several processes, one result: sums over all, decisions they share, work done in turn."""

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


def sum_tensors(tensors: list[Tensor], world: World) -> None:
    """Replace each tensor, in place, by its sum over all processes."""
    if world.size > 1:
        for tensor in tensors:
            dist.all_reduce(tensor)


def agree(value: bool, world: World, device: torch.device) -> bool:
    """The main process's answer, for all: clocks differ between processes, decisions must not."""
    if world.size == 1:
        return value
    flag = torch.tensor([int(value)], device=device)
    dist.broadcast(flag, 0)
    return bool(flag.item())


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
