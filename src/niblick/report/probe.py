"""How fast this machine trains a recipe: a few seconds of steps on meaningless tokens."""

from __future__ import annotations

from time import perf_counter
from typing import Any

import torch

from niblick.model import LanguageModel
from niblick.objective import training_loss
from niblick.optim import Layout, Optimizers
from niblick.recipe import Recipe
from niblick.runtime import choose_precision, keep_freed_memory, settle_threads
from niblick.training.compile import CompiledLoss
from niblick.training.weights import Weights


class Steps:
    """Optimizer steps of a recipe on one device, data and schedule aside."""

    def __init__(self, recipe: Recipe, device: str, *, rows: int | None = None) -> None:
        """`rows` of a micro-batch; the whole batch unless given."""
        training = recipe.training
        settle_threads(training.threads)
        keep_freed_memory()
        self.recipe, self.device = recipe, device
        self.precision = choose_precision(training.precision, device)
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
        model = LanguageModel(recipe.model, seed=recipe.seed).to(device)
        layout = Layout(model.plan.parameters, training)
        self.weights = Weights(model, layout, dtype=dtype, specs={})
        self.optimizer = Optimizers(layout, self.weights.master, training, dtype=dtype)
        self.loss = CompiledLoss(training_loss, model, training.compile, device)
        self.optimizer.use(self.loss.kernels)
        self.weights.use(self.loss.kernels)
        if self.loss.compiled and device != "cpu":
            self.optimizer.compile()
        length = training.sequence_length
        self.rows = training.batch_tokens // length
        self.micro = min(rows or self.rows, self.rows)
        generator = torch.Generator().manual_seed(0)
        shape = self.rows, length + 1
        tokens = torch.randint(recipe.model.vocab_size, shape, generator=generator).to(device)
        self.inputs, self.targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

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
