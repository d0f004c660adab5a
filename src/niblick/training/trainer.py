"""The training loop: batches in, optimizer steps, average, validation and checkpoints, until the
budget is spent.

Guarantees: with a budget in steps or tokens the result does not depend on the clock, nor on how
often the run was killed and resumed (one process, CPU); a signal ends it after the current step
with a checkpoint written.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext, suppress
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from niblick.data.dataset import Dataset
from niblick.errors import TrainingError
from niblick.objective import training_loss
from niblick.optim import Schedule
from niblick.recipe import Recipe
from niblick.runtime import (
    World,
    choose_device,
    keep_freed_memory,
    memory_in_use,
    process_group,
    return_freed_memory,
    settle_threads,
)
from niblick.training.checkpoint import KEPT, checkpoint_name, list_checkpoints, read_checkpoint
from niblick.training.compile import CompiledLoss
from niblick.training.distributed import agree, in_turn, mean_over
from niblick.training.interrupts import StopFlag, stop_on_signals
from niblick.training.overlap import Sink
from niblick.training.passes import Passes
from niblick.training.progress import Clock, Progress, TrainResult, bytes_per_token
from niblick.training.run_folder import Row, RunFolder, claimed
from niblick.training.state import RunState, facts
from niblick.training.validation import make_validator
from niblick.units import LN2, Duration

Report = Callable[[Progress], None]


def train(
    recipe: Recipe,
    dataset: Dataset,
    out: Path,
    *,
    world: World,
    resume: bool = False,
    on_progress: Report | None = None,
    spent: float = 0.0,
    reserve: float = 0.0,
    say: Callable[[str], None] = lambda message: None,
    track: Callable[[Row], None] | None = None,
) -> TrainResult:
    """Train `recipe` on `dataset` in the run directory `out`; with `resume` from its newest
    checkpoint.

    `spent` seconds of training time were used before the call, and `reserve` are kept for what
    reads training text after it. `track` gets each row of metrics.jsonl, `say` what takes its time,
    ends a run early or cannot be promised; as `on_progress`, in the main process only. Raises
    `TrainingError` or `DataError` where the run cannot start or go on, as when another process
    writes into `out`; checkpoints written before stay intact.
    """
    _check(recipe, dataset)
    settle_threads(recipe.training.threads)
    keep_freed_memory()
    folder = RunFolder(Path(out), track)
    device = choose_device(world)
    with (
        claimed(folder.path) if world.is_main else nullcontext(),
        process_group(world, device),
        stop_on_signals() as flag,
    ):
        if resume:
            folder.check_resumable()
        else:
            in_turn(world, lambda: folder.begin(recipe, facts(recipe, dataset)), main_only=True)
        loop = Loop(
            recipe,
            dataset,
            folder,
            world=world,
            device=device,
            flag=flag,
            resume=resume,
            report=on_progress,
            spent=spent,
            reserve=reserve,
            say=say,
        )
        if resume and world.is_main and loop.state.other_threads:
            say(
                f"the run began with {loop.state.other_threads} threads and goes on with"
                f" {torch.get_num_threads()}: its weights may differ in their last bits"
            )
        try:
            return loop.run()
        finally:
            loop.close()


def _check(recipe: Recipe, dataset: Dataset) -> None:
    tokenizer, model = dataset.tokenizer, recipe.model
    if tokenizer.vocab_size != model.vocab_size or tokenizer.bos_id != model.bos_id:
        raise TrainingError(
            f"tokenizer {tokenizer.name} has {tokenizer.vocab_size} tokens and BOS"
            f" {tokenizer.bos_id}; the recipe says model.vocab_size = {model.vocab_size} and"
            f" model.bos_id = {model.bos_id}"
        )


class Loop:
    """One process's part in a run."""

    def __init__(
        self,
        recipe: Recipe,
        dataset: Dataset,
        folder: RunFolder,
        *,
        world: World,
        device: str,
        flag: StopFlag,
        resume: bool,
        report: Report | None,
        spent: float,
        reserve: float,
        say: Callable[[str], None],
    ) -> None:
        self.recipe, self.folder, self.world, self.device = recipe, folder, world, device
        self.flag, self.report, self.stop = flag, report if world.is_main else None, 0
        self.say = say
        kept = list_checkpoints(folder.checkpoints) if resume else []
        self.newest = kept[-1].name if kept else ""
        self.state = RunState(
            recipe,
            dataset,
            world=world,
            device=device,
            saved=read_checkpoint(kept[-1]) if kept else None,
        )
        needed = self.state.checkpoint_bytes * (2 if kept else KEPT + 2)
        in_turn(world, lambda: folder.check_space(needed), main_only=True)
        if resume and world.is_main:
            folder.rewind(self.state.step)
        reserve, _ = agree(world, device, reserve)
        self.schedule = Schedule(recipe.training, reserve, dataset.token_count("train"))
        self.validator = make_validator(recipe, dataset, world=world, device=device)
        self.observe_every = 1 if device == "cpu" else 10  # reading a loss waits for the device
        self.bytes_per_token = bytes_per_token(dataset)
        self.done = resume and folder.finished
        self.state.seconds += 0.0 if self.done else spent
        self.clock = Clock(self.state.seconds)
        self.validation_seconds = 0.0
        self.loss = CompiledLoss(
            training_loss,
            self.state.model,
            recipe.training.compile,
            device,
            tokens=recipe.training.micro_batch_tokens or recipe.training.batch_tokens // world.size,
            layout=self.state.layout,
            sink=self._sink(),
        )
        self.state.optimizer.use(self.loss.kernels)
        self.state.weights.use(self.loss.kernels)
        if self.loss.compiled and device != "cpu":
            self.state.optimizer.compile()
        self.mark: tuple[int, float] | None = None
        self.saved = (self.state.step, self.state.tokens, self.state.seconds)

    def _sink(self) -> Sink | None:
        """What sends gradients while others are computed, where there are several processes."""
        state, optimizer = self.state, self.state.optimizer
        if optimizer.processes is None:
            return None
        return Sink(state.layout, optimizer.gradients, optimizer.buckets(), optimizer.processes)

    def _prepare(self) -> Passes:
        """Choose micro-batches, compile; on the CPU this is training time."""
        kept = self.folder.environment().get("micro_batch")
        with nullcontext() if self.device == "cpu" else self.clock.paused():
            passes = Passes(
                self.recipe,
                self.state,
                self.loss,
                world=self.world,
                device=self.device,
                kept=kept,
                note=self._note_micro_batch,
            )
            if self.validator:
                self.validator.limit(passes.rows)
            passes.warm_up(self.validator)
        return passes

    def _note_micro_batch(self, record: dict[str, Any]) -> None:
        if self.world.is_main:
            self.folder.note(micro_batch=record)

    def run(self) -> TrainResult:
        """Train to the end of the budget, or to a signal."""
        passes = None if self.done or self._finished() else self._prepare()
        while passes and not self._over():
            before = self.schedule.spent(self.state.position)
            loss = self._step(passes)
            self._look_at_clock()
            if self.state.step % self.observe_every == 0 or self._finished():
                self._observe(loss)
            self._validate_if_due(before, loss)
            self._save_if_due()
        return self._finish()

    def close(self) -> None:
        """Release the data threads and the metrics file."""
        self.state.pipeline.close()
        self.folder.close()

    def _over(self) -> bool:
        """Whether the budget is spent or a signal has come."""
        self._look_at_clock()
        return self._finished() or self.stop != 0

    def _finished(self) -> bool:
        state = self.state
        at = state.position
        over = self.schedule.spent(at) >= 1 or not self.schedule.fits(at, at.step_seconds / 2)
        if not over:
            return False
        averaged = state.averager is None or state.averager.count > 0
        return averaged and (state.rounding or not (state.rounds and self.schedule.rounds(at)))

    def _look_at_clock(self) -> None:
        """Agree on the time and on stopping, and measure the time of the steps since the last
        look.
        """
        state = self.state
        if self.world.size > 1 and state.step % self.observe_every:
            return
        state.seconds, self.stop = agree(
            self.world, self.device, self.clock.seconds, self.flag.signal
        )
        if self.mark is not None and state.step > self.mark[0]:
            state.step_times.append((state.seconds - self.mark[1]) / (state.step - self.mark[0]))
        self.mark = (state.step, state.seconds)

    def _step(self, passes: Passes) -> Tensor:
        """One optimizer step; the mean next-token nll (0-dimensional, on the device)."""
        state, training = self.state, self.recipe.training
        at = state.position
        if state.rounds and not state.rounding and self.schedule.rounds(at):
            self._begin_rounding()
        state.weights.refresh(rounded=state.rounding, noise=(self.recipe.seed, state.step))
        loss = passes.accumulate(*state.feeder.next())
        state.optimizer.clip(training.clip)
        state.optimizer.step(self.schedule.multiplier(at), self.schedule.momentum(at))
        state.step += 1
        state.tokens += training.batch_tokens
        if state.averager:
            remaining, last = self.schedule.remaining(at), self.schedule.is_last(at)
            state.averager.update(
                state.weights.master, step=state.step, remaining=remaining, last=last
            )
        return loss

    def _begin_rounding(self) -> None:
        """From here on the copies are rounded as by the codec, or have its errors added."""
        self.state.rounding, self.mark = True, None
        if self.state.noisy:
            return_freed_memory()
            in_time = self.schedule.fits(self.state.position, 2 * self.schedule.reserve)
            self.state.learn_errors(self.world, self.say, in_time=in_time)

    def _observe(self, loss: Tensor) -> None:
        """Read the loss, refuse a broken one, log and report."""
        mean_over(self.world, loss)
        value, state = float(loss), self.state
        if not isfinite(value):
            kept = f"; {self.newest} is intact" if self.newest else ""
            raise TrainingError(
                f"the loss became {value} at step {state.step}{kept}; lower the learning rates"
            )
        if self.world.is_main:
            progress = self._progress(value)
            row = progress.row() | state.optimizer.measures() | memory_in_use(self.device)
            self._log(row)
            if self.report:
                self.report(progress)

    def _log(self, row: Row) -> None:
        """Append to the metrics; where that fails, the run ends with all it can keep."""
        try:
            self.folder.log(row)
        except TrainingError as error:
            if self.world.size == 1:  # several would have to agree
                with suppress(TrainingError):
                    self._save()
            kept = f"; {self.newest} is kept, to go on with --resume" if self.newest else ""
            raise TrainingError(f"{error}{kept}") from None

    def _progress(self, loss: float, validation: tuple[float, float] | None = None) -> Progress:
        state, at = self.state, self.state.position
        spent, seconds = min(1.0, self.schedule.spent(at)), at.step_seconds
        return Progress(
            step=state.step,
            fraction=spent,
            seconds=self.clock.seconds,
            tokens=state.tokens,
            loss=loss,
            bpb=loss / LN2 / self.bytes_per_token,
            multiplier=self.schedule.multiplier(at),
            tokens_per_second=self.recipe.training.batch_tokens / seconds if seconds else 0.0,
            seconds_left=self.clock.seconds * (1 - spent) / spent if spent else 0.0,
            rounding=state.rounded,
            validation_loss=validation[0] if validation else None,
            validation_bpb=validation[1] if validation else None,
            checkpoint=self.newest,
        )

    def _validate_if_due(self, before: float, loss: Tensor) -> None:
        """Score the exportable weights whenever another `every` of the budget is spent; `loss` is
        the last step's.

        A budget in steps or tokens ends with one; one in seconds does not, as it would be spent
        beyond the budget.
        """
        if self.validator is None or (
            self._finished() and self.schedule.duration.unit == "seconds"
        ):
            return
        every, state = self.recipe.training.validation.every, self.state
        spent = min(1.0, self.schedule.spent(state.position))
        if int(spent / every + 1e-9) == int(before / every + 1e-9) and not self._finished():
            return
        if not self.schedule.fits(state.position, self.validation_seconds):
            return
        began = self.clock.seconds
        return_freed_memory()
        state.weights.refresh(state.exportable, rounded=state.rounding)
        nats, bpb = self.validator.measure(state.model)
        state.weights.refresh(rounded=state.rounding)
        state.validations.append((state.step, bpb))
        self.mark, took = None, self.clock.seconds - began
        self.validation_seconds, _ = agree(self.world, self.device, took)
        if self.world.is_main:
            progress = self._progress(float(loss), validation=(nats, bpb))
            self._log(progress.row())
            if self.report:
                self.report(progress)

    def _save_if_due(self) -> None:
        every, state = Duration.parse(self.recipe.training.checkpoint_every), self.state
        step, tokens, seconds = self.saved
        since = every.fraction(
            seconds=state.seconds - seconds, steps=state.step - step, tokens=state.tokens - tokens
        )
        if since >= 1:
            self._save()

    def _save(self) -> None:
        """Write a checkpoint outside training time; in the other processes, only take note."""
        state = self.state
        if state.step != self.saved[0] or not self.newest:
            with self.clock.paused():
                if self.world.size > 1:
                    state.optimizer.complete()
                if self.world.is_main:
                    state.capture(self.folder.checkpoints)
                self.newest = checkpoint_name(state.step)
        self.saved, self.mark = (state.step, state.tokens, state.seconds), None

    def _finish(self) -> TrainResult:
        state = self.state
        if not (self.stop or self.done):
            state.seconds, _ = agree(self.world, self.device, self.clock.seconds)
        self._save()
        if self.world.is_main and not self.stop:
            for line in self.schedule.left_out(
                state.position, rounds=state.rounds and not state.rounding
            ):
                self.say(line)
        return TrainResult(
            tensors=state.exported(),
            seconds=state.seconds,
            tokens=state.tokens,
            steps=state.step,
            passes=state.pipeline.passes,
            interrupted=0 if self._finished() else self.stop,
            compiled=self.loss.compiled,
            precision=state.precision,
            rounded=state.rounded,
            validations=tuple(state.validations),
        )
