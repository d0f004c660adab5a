"""Many processes, one run: gradients summed in a few flat buckets, Muon's work shared, the clock
agreed upon.

With one process every function here is the identity. Processes are those of torchrun; gloo joins
them on the CPU, NCCL on GPUs.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from niblick.runtime import World

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
