"""Several processes, one score: a common process group, sums over it, and decisions that all of them share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from niblick.runtime import World


@contextmanager
def process_group(world: World, device: str) -> Iterator[None]:
    """A default process group for the block, unless there is one process or the caller has made one already."""
    if world.size == 1 or dist.is_initialized():
        yield
        return
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo", rank=world.rank, world_size=world.size)
    try:
        yield
    finally:
        dist.destroy_process_group()


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
