"""What an optimizer is: an update of one group's flat weights, with all of its state in tensors.

A new optimizer is one class in one file, registered under the name that `training.optimizer` uses;
user code registers its own through a plugin (docs/adding.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from niblick.optim.buffers import Stack
from niblick.optim.groups import Group
from niblick.optim.sharding import Processes
from niblick.recipe.schema import TrainingRecipe
from niblick.registry import Registry

if TYPE_CHECKING:
    from niblick.model.kernels import Kernels


@dataclass(frozen=True, kw_only=True)
class ParameterGroup:
    """What an optimizer is made for: one group's flat part of the buffers.

    `stacks` are its matrices; products may run in `dtype`. An optimizer may divide its work between
    `processes` (None: there is one; see `niblick.optim.sharding`).
    """

    group: Group
    stacks: tuple[Stack, ...]
    size: int
    dtype: torch.dtype = torch.float32
    device: torch.device | str = "cpu"
    processes: Processes | None = None


@dataclass(frozen=True, kw_only=True)
class Update:
    """One step: its number from 1, the schedule's values, and a factor on all gradients."""

    step: int
    multiplier: float
    momentum: float = 0.9
    grad_scale: float = 1.0


class Optimizer(Protocol):
    """Moves one group; made from the group and the recipe's training section.

    `lr` is the rate at a multiplier of 1, for the metrics. One that has `compile(backend)` is asked
    to compile what it computes where weights are on an accelerator. One that divides its matrices
    between processes has `shards`; it is given the gradients of its own matrices alone.
    """

    lr: float

    def __init__(self, group: ParameterGroup, training: TrainingRecipe) -> None: ...

    def state(self) -> dict[str, Tensor]:
        """Every tensor that a checkpoint must keep, by name; copied into on resuming."""
        ...

    def update(self, weights: Tensor, gradients: Tensor, at: Update) -> None:
        """Change flat float32 `weights` in place; `gradients` are used up."""
        ...

    def use(self, kernels: Kernels | None) -> None:
        """Take compiled forms where there are some, equal up to rounding (None: plain torch)."""
        ...


OPTIMIZERS: Registry[type[Optimizer]] = Registry("optimizer")
