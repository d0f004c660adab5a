"""Several processes, one result: sums over all, decisions they share, work done in turn."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from niblick.errors import NiblickError, TrainingError
from niblick.runtime import World, choose_device

T = TypeVar("T")


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


def in_turn(world: World, work: Callable[[], T], *, main_only: bool = False) -> T:
    """`work` in the main process first, then in the others (not at all with `main_only`).

    Where the main process fails, the others fail too instead of waiting for ever.
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
    dist.broadcast(flag, 0)
    if failure is not None:
        raise failure
    if flag.item():
        raise TrainingError("the main process could not go on; its message says why")
    return result if world.is_main or main_only else work()  # type: ignore[return-value]
