"""Forward and backward of a batch, in micro-batches of as many rows as memory holds."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from niblick.errors import NiblickWarning
from niblick.recipe import Recipe
from niblick.runtime import World
from niblick.training.compile import CompiledLoss
from niblick.training.dropout import Dropout
from niblick.training.memory import (
    SMALL,
    Choice,
    choose_rows,
    device_memory,
    is_out_of_memory,
    out_of_memory,
    release,
    smaller,
)
from niblick.training.state import RunState
from niblick.training.validation import Validator


class Passes:
    """The micro-batches of one process's batches, whose gradients go into the flat buffer.

    `rows` of a micro-batch are the recipe's, those that `kept` says an earlier process of the run
    used on such a device, or as many as memory holds; `note` is told what was chosen.
    """

    def __init__(
        self,
        recipe: Recipe,
        state: RunState,
        loss: CompiledLoss,
        *,
        world: World,
        device: str,
        kept: dict[str, Any] | None = None,
        note: Callable[[dict[str, Any]], None] = lambda record: None,
    ) -> None:
        training = recipe.training
        self.recipe, self.state, self.loss, self.world = recipe, state, loss, world
        self.device, self.length = device, training.sequence_length
        self.batch = training.batch_tokens // self.length // world.size  # rows of this process
        self.dropout = Dropout(recipe, world, device)
        self.choice = self._choose(kept or {})
        self.rows = self._agreed(self.choice.rows)
        self._note = note
        note(self.record)

    @property
    def record(self) -> dict[str, Any]:
        """What `environment.json` keeps."""
        return replace(self.choice, rows=self.rows).record(self.length, self._device_name)

    @property
    def _device_name(self) -> str:
        on_cuda = self.device.startswith("cuda")
        return torch.cuda.get_device_name(self.device) if on_cuda else self.device

    def _choose(self, kept: dict[str, Any]) -> Choice:
        training = self.recipe.training
        if training.micro_batch_tokens:
            rows = min(training.micro_batch_tokens // self.length, self.batch)
            return Choice(rows, "recipe")
        if self.batch * self.length <= SMALL:
            return Choice(self.batch, "whole batch")
        tokens, where = kept.get("tokens"), kept.get("device")
        if type(tokens) is int and tokens >= self.length and where == self._device_name:
            rows = tokens // self.length
            if self.batch % rows == 0:
                return Choice(rows, "kept")
        on_cpu = self.device == "cpu"
        most = SMALL // self.length if on_cpu else None
        memory = device_memory(self.device)
        return choose_rows(
            self.batch,
            partial(self._probe, self.loss.plain_backward),
            memory,
            most=most,
            confirm=None if on_cpu else partial(self._probe, self.loss.backward),
        )

    def _agreed(self, rows: int) -> int:
        """The least of all processes."""
        if self.world.size == 1:
            return rows
        least = torch.tensor([rows], device=self.device)
        dist.all_reduce(least, dist.ReduceOp.MIN)
        return int(least)

    def _probe(self, backward: Callable[..., object], rows: int) -> None:
        """Forward and backward of meaningless tokens; nothing is learned, nothing is kept."""
        count = rows * (self.length + 1)
        tokens = torch.arange(count, device=self.device) % self.recipe.model.vocab_size
        tokens = tokens.view(rows, -1)
        inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
        factors = {name: factor[:rows] for name, factor in self.dropout.draw(0).items()}
        try:
            backward(inputs, targets, factors)
        finally:
            self._forget()

    def _forget(self) -> None:
        for parameter in self.state.weights.parameters:
            parameter.grad = None

    def warm_up(self, validator: Validator | None) -> None:
        """Compile with the recipe's number of passes, a step of the optimizer and a validation, all
        undone.
        """
        if self.loss.compiled and self.device != "cpu":
            for _ in range(self.recipe.training.compile_warmup_steps):
                self._probe(self.loss.backward, self.rows)
            self.state.optimizer.warm_up()
            if validator is not None:
                validator.measure(self.state.model)

    def accumulate(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Forward and backward into the flat gradients, the mean over all processes; the mean nll
        of all rows of this one.

        Where memory runs out, and the recipe does not say how many rows a micro-batch has, the
        batch is done again in smaller ones. Several processes cannot: `CapacityError` names the
        cure.
        """
        while True:
            try:
                return self._accumulate(inputs, targets)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                fewer = self._fewer(error)
            # Only here, behind the error and its frames, is the memory of the pass free.
            self._forget()
            release()
            self.rows = fewer
            self._note(self.record)

    def _fewer(self, error: Exception) -> int:
        """The next smaller micro-batch; `CapacityError` where there may be none."""
        fewer = smaller(self.rows, self.batch)
        fixed = self.choice.reason == "recipe" or self.world.size > 1
        if fixed or fewer is None:
            raise out_of_memory(self.device, self.rows * self.length, error) from error
        warnings.warn(
            f"out of memory on {self.device}: micro-batches of {fewer * self.length:,} tokens from"
            f" here on, {self.rows * self.length:,} before",
            NiblickWarning,
            stacklevel=3,
        )
        return fewer

    def _accumulate(self, inputs: Tensor, targets: Tensor) -> Tensor:
        rows, total, sink = self.rows, torch.zeros((), device=self.device), self.loss.sink
        factors = self.dropout.draw(self.state.step)
        for i, (x, y) in enumerate(
            zip(torch.split(inputs, rows), torch.split(targets, rows), strict=True)
        ):
            part = {name: factor[i * rows : (i + 1) * rows] for name, factor in factors.items()}
            share = len(x) / len(inputs)
            if sink is not None:
                sink.open(add=i > 0, last=(i + 1) * rows >= len(inputs))
            nll = self.loss.backward(x, y, part, share)
            if sink is not None:
                self._forget()
                sink.close()
            else:
                self.state.weights.collect(self.state.optimizer.gradients, add=i > 0)
            total += nll * share
        if sink is None:
            self.state.optimizer.reduce()
        return total
