"""Everything that changes during a run, built from a recipe and continued from a checkpoint.

Guarantees: `capture` and a fresh state built from what it saved are equal bit for bit; nothing else
is random (the data order and dropout come from the seed and the step).
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from niblick.compression import rounding_specs
from niblick.data.dataset import Dataset
from niblick.errors import TrainingError
from niblick.model import LanguageModel
from niblick.optim import Layout, Moment, Optimizer, make_averager
from niblick.recipe import Recipe
from niblick.runtime import World, choose_precision
from niblick.training.checkpoint import Numbers, write_checkpoint
from niblick.training.device import DeviceFeeder
from niblick.training.distributed import sum_over
from niblick.training.pipeline import Pipeline
from niblick.training.weights import Weights
from niblick.units import Duration

STEP_TIMES = 31  # how many recent steps the measured step time is the median of


class RunState:
    """Model, weights, optimizer, average, data stream and counters of one run."""

    def __init__(
        self,
        recipe: Recipe,
        dataset: Dataset,
        *,
        world: World,
        device: str,
        saved: tuple[Numbers, dict[str, Tensor]] | None = None,
    ) -> None:
        self.recipe, self.dataset, self.device = recipe, dataset, device
        self.precision = choose_precision(recipe.training.precision, device)
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
        self.model = LanguageModel(recipe.model, seed=recipe.seed).to(device)
        self.layout = Layout(self.model.plan.parameters)
        specs = rounding_specs(recipe, self.model.plan, refuse=saved is None)
        self.weights = Weights(self.model, self.layout, dtype=dtype, specs=specs)
        self.optimizer = Optimizer(
            self.layout,
            self.weights.master,
            muon=recipe.training.muon,
            adam=recipe.training.adam,
            dtype=dtype,
            share=(world.rank, world.size),
            gather=partial(sum_over, world) if world.size > 1 else None,
        )
        self.averager = make_averager(recipe.training.averaging, self.weights.master)
        self.step = self.tokens = 0
        self.seconds = 0.0
        self.rounding = False
        self.step_times: deque[float] = deque(maxlen=STEP_TIMES)
        self.validations: list[tuple[int, float]] = []
        self.pipeline = _pipeline(recipe, dataset, world, saved[0].data if saved else None)
        if saved:
            self._restore(*saved)
        self.feeder = DeviceFeeder(self.pipeline, device)

    @property
    def moment(self) -> Moment:
        """Where the run stands, for the schedule."""
        step_seconds = median(self.step_times) if self.step_times else 0.0
        return Moment(
            step=self.step, tokens=self.tokens, seconds=self.seconds, step_seconds=step_seconds
        )

    @property
    def exportable(self) -> Tensor:
        """The flat weights that a run would export now: the average where there is one."""
        return (
            self.averager.average if self.averager and self.averager.count else self.weights.master
        )

    def exported(self) -> dict[str, Tensor]:
        """The exportable weights by name, float32 on the CPU, without training-only heads."""
        views = self.layout.views(self.exportable)
        return {p.name: views[p.name].to("cpu", copy=True) for p in self.model.plan.exported}

    def capture(self, folder: Path) -> Path:
        """Write a checkpoint of this state below `folder`; its path."""
        numbers = Numbers(
            step=self.step,
            tokens=self.tokens,
            seconds=self.seconds,
            step_seconds=self.moment.step_seconds,
            rounding=self.rounding,
            average_count=self.averager.count if self.averager else 0,
            average_sample=self.averager.last_sample if self.averager else -1,
            data=self.feeder.state(),
            layout=self.layout.fingerprint,
            recipe=_fingerprint(self.recipe),
            validations=self.validations,
        )
        buffers = {name: tensor.cpu() for name, tensor in self._buffers().items()}
        return write_checkpoint(
            folder, numbers, buffers, self.exported(), self.recipe, self.dataset.tokenizer
        )

    def _buffers(self) -> dict[str, Tensor]:
        found = {"master": self.weights.master, **self.optimizer.tensors()}
        if self.averager:
            found["average"] = self.averager.average
        return found

    @torch.no_grad()
    def _restore(self, numbers: Numbers, buffers: dict[str, Tensor]) -> None:
        if (numbers.layout, numbers.recipe) != (self.layout.fingerprint, _fingerprint(self.recipe)):
            raise TrainingError(
                f"the checkpoint of step {numbers.step} was trained with another recipe than the"
                " one given; resume with the run's own recipe.toml"
            )
        for name, target in self._buffers().items():
            target.copy_(buffers[name])
        self.optimizer.steps = self.step = numbers.step
        self.tokens, self.seconds, self.rounding = numbers.tokens, numbers.seconds, numbers.rounding
        self.validations = list(numbers.validations)
        if numbers.step_seconds:
            self.step_times.append(numbers.step_seconds)
        if self.averager:
            self.averager.count, self.averager.last_sample = (
                numbers.average_count,
                numbers.average_sample,
            )


def _pipeline(
    recipe: Recipe, dataset: Dataset, world: World, state: dict[str, int] | None
) -> Pipeline:
    training, data = recipe.training, recipe.data
    duration = Duration.parse(training.duration)
    planned = {"steps": duration.amount, "tokens": duration.amount / training.batch_tokens}.get(
        duration.unit
    )
    return Pipeline(
        dataset.shards("train"),
        sequence_length=training.sequence_length,
        batch_sequences=training.batch_tokens // training.sequence_length,
        seed=recipe.seed,
        rank=world.rank,
        world_size=world.size,
        workers=data.workers,
        mix_start=data.shard_mix[0],
        mix_end=data.shard_mix[1],
        alpha_start=data.alpha[0],
        alpha_end=data.alpha[1],
        total_batches=None if planned is None else int(-(-planned // 1)),
        vocab_size=recipe.model.vocab_size,
        state=state,
    )


def _fingerprint(recipe: Recipe) -> str:
    """Hash of what must not change between a checkpoint and its continuation."""
    values = recipe.model_dump(mode="json")
    free = ("duration", "checkpoint_every", "threads", "compile", "compile_warmup_steps")
    kept = {
        "seed": values["seed"],
        "model": values["model"],
        "training": {key: value for key, value in values["training"].items() if key not in free},
    }
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()
