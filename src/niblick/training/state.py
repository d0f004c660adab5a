"""Everything that changes during a run, built from a recipe and continued from a checkpoint.

Guarantees: `capture` and a fresh state built from what it saved are equal bit for bit; nothing else
is random (the data order and dropout come from the seed and the step).
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from niblick.artifact.load import Opened, find_model, open_file
from niblick.codecs import noisy, rounding_specs
from niblick.compression.calibration import make_calibration
from niblick.compression.packing import packing_errors
from niblick.data.dataset import Dataset
from niblick.errors import TrainingError
from niblick.limits import cut, quoted
from niblick.model import load_tensors, new_model
from niblick.optim import Launched, Layout, Optimizers, TrainingPosition, make_averager
from niblick.plan import make_plan
from niblick.recipe import Recipe, stored_values
from niblick.runtime import World, choose_precision, describe_environment
from niblick.training.checkpoint import TrainerState, write_checkpoint
from niblick.training.device import DeviceFeeder
from niblick.training.distributed import sum_over
from niblick.training.pipeline import Pipeline
from niblick.training.weights import Weights
from niblick.units import Duration

_MEASURING = "measuring what packing will add to the weights ..."
_NO_TIME = "no time to measure what packing will add to the weights: no late QAT"
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
        saved: tuple[TrainerState, dict[str, Tensor]] | None = None,
    ) -> None:
        self.recipe, self.dataset, self.device = recipe, dataset, device
        self.precision = choose_precision(recipe.training.precision, device)
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
        self.model = new_model(recipe.model, seed=recipe.seed)
        if recipe.training.init_from and saved is None:
            load_tensors(self.model, _start(recipe, dataset).tensors)
        self.model.to(device)
        self.layout = Layout(self.model.plan.parameters, recipe.training)
        specs = rounding_specs(recipe, self.model.plan, refuse=saved is None)
        self.noisy = noisy(recipe)
        self.weights = Weights(self.model, self.layout, dtype=dtype, specs=specs)
        self.optimizer = Optimizers(
            self.layout,
            self.weights.master,
            recipe.training,
            dtype=dtype,
            processes=_processes(recipe, world),
        )
        self.averager = make_averager(recipe.training.averaging, self.weights.master)
        self.step = self.tokens = 0
        self.seconds = 0.0
        self.rounding = False
        self.other_threads = 0  # of the run so far, where it had another number
        self.step_times: deque[float] = deque(maxlen=STEP_TIMES)
        self.validations: list[tuple[int, float]] = []
        self.pipeline = _pipeline(recipe, dataset, world, saved[0].data if saved else None)
        if saved:
            self._restore(*saved)
        self.feeder = DeviceFeeder(self.pipeline, device)

    @property
    def rounds(self) -> bool:
        """Whether late QAT is part of this run: the codec must be able to share its rounding, or
        its errors.
        """
        return self.noisy or bool(self.weights.specs)

    @property
    def rounded(self) -> bool:
        """Whether late QAT has begun, and was not left out for want of time."""
        return self.rounding and self.rounds

    @property
    def position(self) -> TrainingPosition:
        """Where the run stands, for the schedule."""
        step_seconds = median(self.step_times) if self.step_times else 0.0
        return TrainingPosition(
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

    @property
    def checkpoint_bytes(self) -> int:
        """About what one checkpoint takes on disk: the buffers and the exported weights."""
        tensors = self._own_buffers() | self.optimizer.tensors()
        return sum(t.nbytes for t in tensors.values()) + 4 * self.model.plan.parameter_count

    def capture(self, folder: Path) -> Path:
        """Write a checkpoint of this state below `folder`; its path."""
        saved = TrainerState(
            step=self.step,
            tokens=self.tokens,
            seconds=self.seconds,
            step_seconds=self.position.step_seconds,
            rounding=self.rounding,
            average_count=self.averager.count if self.averager else 0,
            average_sample=self.averager.last_sample if self.averager else -1,
            data=self.feeder.state(),
            layout=self.layout.fingerprint,
            recipe=_fingerprint(self.recipe),
            validations=self.validations,
            threads=self.other_threads or torch.get_num_threads(),
        )
        tensors = self._own_buffers() | self.optimizer.tensors()
        buffers = {name: tensor.cpu() for name, tensor in tensors.items()}
        return write_checkpoint(
            folder, saved, buffers, self.exported(), self.recipe, self.dataset.tokenizer
        )

    def learn_errors(self, world: World, say: Callable[[str], None], *, in_time: bool) -> None:
        """Have the codec say what it would add to the exportable weights, for `Weights.refresh`.

        The first process asks; all get the same. Where it has no time for that (not `in_time`), the
        run goes on without.
        """
        if world.is_main:
            say(_MEASURING if in_time else _NO_TIME)
        asked = torch.full((1,), float(world.is_main and in_time), device=self.device)
        sum_over(world, asked)
        self.noisy = bool(asked)
        if not self.noisy:
            return
        errors = torch.zeros_like(self.weights.master)
        if world.is_main:
            found = packing_errors(
                self.exported(),
                self.recipe,
                self.dataset.tokenizer,
                make_calibration(self.recipe, self.dataset),
                device=self.device,
            )
            for slot in self.layout.slots:
                if slot.name in found:
                    slot.view(errors).copy_(torch.from_numpy(found[slot.name]))
        sum_over(world, errors)
        self.weights.errors = errors

    def _own_buffers(self) -> dict[str, Tensor]:
        found = {"master": self.weights.master}
        if self.weights.errors is not None:
            found["errors"] = self.weights.errors
        if self.averager:
            found["average"] = self.averager.average
        return found

    @torch.no_grad()
    def _restore(self, saved: TrainerState, buffers: dict[str, Tensor]) -> None:
        if (saved.layout, saved.recipe) != (self.layout.fingerprint, _fingerprint(self.recipe)):
            raise TrainingError(
                f"the checkpoint of step {saved.step} was trained with another recipe than the"
                " one given; resume with the run's own recipe.toml"
            )
        if "errors" in buffers:
            self.weights.errors = torch.zeros_like(self.weights.master)
        elif saved.rounding:  # begun when asking for it had no effect
            self.noisy = False
        for name, target in self._own_buffers().items():
            target.copy_(buffers[name])
        self.optimizer.load(buffers, saved.step)
        self.step = saved.step
        self.tokens, self.seconds, self.rounding = saved.tokens, saved.seconds, saved.rounding
        self.validations = list(saved.validations)
        if saved.threads not in (0, torch.get_num_threads()):
            self.other_threads = saved.threads
        if saved.step_seconds:
            self.step_times.append(saved.step_seconds)
        if self.averager:
            self.averager.count, self.averager.last_sample = (
                saved.average_count,
                saved.average_sample,
            )


def facts(recipe: Recipe, dataset: Dataset) -> dict[str, Any]:
    """What environment.json says of a new run: the machine, and the model that it starts from;
    `ArtifactError` or `TrainingError` where it cannot.
    """
    source = recipe.training.init_from
    if not source:
        return describe_environment()
    start = {"model": source, "sha256": _start(recipe, dataset).sha256}
    return {**describe_environment(), "init_from": start}


def _start(recipe: Recipe, dataset: Dataset) -> Opened:
    """The model that a run starts from, which must have the shapes of its own and read the same
    tokens.
    """
    source = recipe.training.init_from
    opened = open_file(find_model(source))
    own = {(p.name, p.shape) for p in make_plan(recipe.model).exported}
    if odd := {(p.name, p.shape) for p in opened.plan.parameters} ^ own:
        raise TrainingError(
            f"{quoted(source)} is of another shape than the recipe's model: {min(odd)[0]} differs;"
            f" `niblick train --from {cut(source, 60)}` takes the shape with the weights"
        )
    theirs, text = opened.tokenizer, dataset.tokenizer
    if theirs is not None and theirs.to_bytes() != text.to_bytes():
        raise TrainingError(
            f"{quoted(source)} reads other tokens ({theirs.name}) than those that the text is in"
            f" ({text.name}); `niblick train --from MODEL --data TEXT` takes the model's"
        )
    return opened


def _processes(recipe: Recipe, world: World) -> Launched | None:
    if world.size == 1:
        return None
    sent = torch.bfloat16 if recipe.training.reduce == "bf16" else torch.float32
    return Launched(world.rank, world.size, sent)


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
        documents_from=recipe.model.bos_id if data.rows == "documents" else None,
        state=state,
    )


def _fingerprint(recipe: Recipe) -> str:
    """Hash of what must not change between a checkpoint and its continuation."""
    values = stored_values(recipe)
    free = ("duration", "checkpoint_every", "threads", "compile", "compile_warmup_steps")
    kept = {
        "seed": values["seed"],
        "model": values["model"],
        "training": {key: value for key, value in values["training"].items() if key not in free},
    }
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()
