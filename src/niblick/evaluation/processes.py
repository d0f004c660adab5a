"""Several processes, one result: sums over all, decisions they share."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from niblick.runtime import World


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
