"""Several processes, one score: every process fills in the tokens it scored, and all end with all of them.

Adding zeros to a number does not change it, so the result of any number of processes is bit for bit the table one
process would hold, wherever the numbers themselves do not depend on who computes them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
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


class Tally:
    """Negative log-likelihoods (nats, float32) of the predictions of one stream, each entered exactly once.

    `rows` is K, the number of tokens asked for at each prediction.
    """

    def __init__(self, rows: int, predictions: int) -> None:
        self._nll = torch.zeros(rows, predictions)
        self._times = torch.zeros(predictions, dtype=torch.uint8)

    def enter(self, start: int, nll: Tensor) -> None:
        """File the scores (K, n) of predictions start .. start + n - 1."""
        values = nll.detach().float().cpu()
        self._nll[:, start : start + values.shape[1]] += values
        self._times[start : start + values.shape[1]] += 1

    def collect(self, world: World, device: torch.device) -> NDArray[np.float32]:
        """All scores (K, n - 1), from all processes; each was entered once, by exactly one of them."""
        nll, times = self._nll.to(device), self._times.to(device)
        sum_tensors([nll, times], world)
        assert bool((times == 1).all()), "a prediction was scored twice or not at all"
        table: NDArray[np.float32] = nll.cpu().numpy()
        return table
