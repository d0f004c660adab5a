"""How fast this machine trains a recipe: a few seconds of steps on meaningless tokens."""

from __future__ import annotations

from functools import partial
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from niblick.model import new_model
from niblick.objective import training_loss
from niblick.optim import Layout, Optimizers
from niblick.recipe import Recipe
from niblick.runtime import choose_precision, keep_freed_memory, settle_threads
from niblick.training.compile import CompiledLoss
from niblick.training.memory import SMALL, Choice, choose_rows, device_memory
from niblick.training.weights import Weights


class Steps:
    """Optimizer steps of a recipe on one device, data and schedule aside.

    `tokens` (rows, T + 1) are the batch, meaningless ones where they are not given.
    """

    def __init__(self, recipe: Recipe, device: str, tokens: Tensor | None = None) -> None:
        training = recipe.training
        settle_threads(training.threads)
        keep_freed_memory()
        self.recipe, self.device = recipe, device
        self.precision = choose_precision(training.precision, device)
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
        model = new_model(recipe.model, seed=recipe.seed).to(device)
        layout = Layout(model.plan.parameters, training)
        self.weights = Weights(model, layout, dtype=dtype, specs={})
        self.optimizer = Optimizers(layout, self.weights.master, training, dtype=dtype)
        most = training.micro_batch_tokens or training.batch_tokens
        self.loss = CompiledLoss(training_loss, model, training.compile, device, tokens=most)
        self.optimizer.use(self.loss.kernels)
        self.weights.use(self.loss.kernels)
        if self.loss.compiled and device != "cpu":
            self.optimizer.compile()
        length = training.sequence_length
        self.rows = self.micro = training.batch_tokens // length
        if tokens is None:
            generator, shape = torch.Generator().manual_seed(0), (self.rows, length + 1)
            tokens = torch.randint(recipe.model.vocab_size, shape, generator=generator)
        tokens = tokens.to(device)
        self.inputs, self.targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def fit(self) -> Choice:
        """Take micro-batches as a run does: the most rows that memory holds."""
        if self.tokens <= SMALL:
            return Choice(self.rows, "whole batch")

        def run(backward: Any, rows: int) -> None:
            try:
                backward(self.inputs[:rows], self.targets[:rows])
            finally:
                for parameter in self.weights.parameters:
                    parameter.grad = None

        confirm = None if self.device == "cpu" else partial(run, self.loss.backward)
        memory = device_memory(self.device)
        choice = choose_rows(
            self.rows, partial(run, self.loss.plain_backward), memory, confirm=confirm
        )
        self.micro = choice.rows
        return choice

    @property
    def tokens(self) -> int:
        """Of one step."""
        return self.recipe.training.batch_tokens

    def step(self) -> float:
        """One step; its seconds, to the end of what the device does."""
        began, share = perf_counter(), self.micro / self.rows
        self.weights.refresh()
        for start in range(0, self.rows, self.micro):
            part = slice(start, start + self.micro)
            self.loss.backward(self.inputs[part], self.targets[part], weight=share)
            self.weights.collect(self.optimizer.gradients, add=start > 0)
        self.optimizer.clip(self.recipe.training.clip)
        self.optimizer.step(0.01, 0.9)
        if self.device.startswith("cuda"):
            torch.cuda.synchronize(self.device)
        return perf_counter() - began


def training_speed(recipe: Recipe, device: str, seconds: float) -> dict[str, Any]:
    """Tokens per second of the fastest step, after one that compiles, and what computed them."""
    steps = Steps(recipe, device)
    steps.step()
    until, found = perf_counter() + seconds, [steps.step()]
    while perf_counter() < until:
        found.append(steps.step())
    return {
        "tokens_per_second": round(steps.tokens / min(found)),
        "precision": steps.precision,
        "compiled": steps.loss.compiled,
    }
