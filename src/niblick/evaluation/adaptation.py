"""Score-first test-time training of the weights: each chunk is scored, entered, and only then
learnt.

The stream is read once, statefully. What training accepts is `Scored`, which a tally makes from
entered predictions alone. The caller's model is never touched: a copy learns.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from niblick.evaluation.modes import Job, autocast, head_nll, stream
from niblick.evaluation.processes import agree, sum_tensors
from niblick.evaluation.tally import Scored, Tally
from niblick.model import LanguageModel
from niblick.scoring.options import Adaptation, OptionsError
from niblick.scoring.windows import pieces


def adapt_weights(job: Job, settings: Adaptation) -> tuple[Tally, dict[str, Any]]:
    """Score the stream chunk by chunk, learning each one after it is scored; the tally and what was
    learnt.

    All processes score everything and share the work of learning. Nothing is learnt after the last
    chunk, whose lesson no score could use.
    """
    job = replace(job, model=deepcopy(job.model))
    tally = Tally(
        len(job.asked), job.predictions, whole=True, report=job.on_progress, device=job.device
    )
    cuts = pieces(job.predictions, chunk_size(settings, job.predictions))
    learner = Learner(job, settings, rate=settings.rate, method=settings.method)
    state = job.model.empty_state(context=job.context)
    for index, (start, end) in enumerate(cuts):
        with torch.no_grad(), autocast(job):
            state = stream(job, tally, state, start, end)
        if index + 1 < len(cuts) and learner.may_learn():
            learner.learn(
                tally.scored(job.tokens, row_spans(job, settings, start, end)), index / len(cuts)
            )
    return tally, learner.facts()


def chunk_size(settings: Adaptation, predictions: int) -> int:
    """Predictions scored before each update of the weights."""
    return max(1, -(-predictions // settings.phases)) if settings.phases > 1 else settings.chunk


def row_spans(job: Job, settings: Adaptation, start: int, end: int) -> list[tuple[int, int]]:
    """Predictions [start, end) as rows to train on."""
    length = settings.sequence_length or job.context
    return [(start + a, start + b) for a, b in pieces(end - start, length)]


class Learner:
    """An optimizer over a model's weights that learns from `Scored` tokens and from nothing
    else.
    """

    def __init__(self, job: Job, settings: Adaptation, *, rate: float, method: str) -> None:
        self._job, self._settings, self._rate = job, settings, rate
        self._weights = trainable(job.model, settings.freeze)
        self._optimizer: torch.optim.Optimizer
        if method == "adamw":
            self._optimizer = torch.optim.AdamW(
                self._weights, lr=rate, weight_decay=settings.weight_decay
            )
        elif method == "rms":
            self._optimizer = Rms(self._weights, lr=rate)
        else:
            self._optimizer = torch.optim.SGD(
                self._weights,
                lr=rate,
                momentum=settings.momentum,
                weight_decay=settings.weight_decay,
            )
        self._began, self._steps, self._tokens, self._stopped = time.perf_counter(), 0, 0, False

    def may_learn(self) -> bool:
        """False once the time limit has passed on the main process."""
        if self._settings.seconds is not None and not self._stopped:
            late = time.perf_counter() - self._began > self._settings.seconds
            self._stopped = agree(late, self._job.world, self._job.device)
        return not self._stopped

    def learn(self, scored: Scored, progress: float) -> None:
        """Train on scored rows, every epoch in their order; `progress` in [0, 1) places the cosine
        of the rate.
        """
        rate = self._rate * (
            0.5 * (1 + math.cos(math.pi * progress)) if self._settings.cosine else 1.0
        )
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        for _ in range(self._settings.epochs):
            for rows in self._batches(scored):
                train_step(self._job, self._weights, self._optimizer, rows, self._settings.clip)
                self._steps += 1
        self._tokens += scored.count

    def facts(self) -> dict[str, Any]:
        """What was done, for the score."""
        return {
            "steps": self._steps,
            "learnt_tokens": self._tokens,
            "stopped_by_time": self._stopped,
        }

    def _batches(self, scored: Scored) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for i in range(0, len(scored.inputs), self._settings.batch_rows):
            part = slice(i, i + self._settings.batch_rows)
            yield scored.inputs[part], scored.targets[part], scored.mask[part]


class Rms(torch.optim.Optimizer):
    """Gradients divided by their root mean square over the steps so far, which a tenth of the mean
    over all weights is added to (Krause et al. 2018, arXiv 1709.07432, from scored text alone).
    """

    def __init__(self, weights: list[nn.Parameter], *, lr: float) -> None:
        super().__init__(weights, {"lr": lr})
        self._steps, self._squares = 0, [torch.zeros_like(weight) for weight in weights]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step by the gradients; `closure` is not called."""
        (group,) = self.param_groups
        self._steps += 1
        for weight, squares in zip(group["params"], self._squares, strict=True):
            squares.addcmul_(weight.grad, weight.grad)
        roots = [(squares / self._steps).sqrt() for squares in self._squares]
        floor = 0.1 * torch.cat([root.flatten() for root in roots]).mean() + 1e-30
        for weight, root in zip(group["params"], roots, strict=True):
            weight.addcdiv_(weight.grad, root + floor, value=-group["lr"])


def train_step(
    job: Job,
    weights: list[nn.Parameter],
    optimizer: torch.optim.Optimizer,
    rows: tuple[Tensor, Tensor, Tensor],
    clip: float,
) -> None:
    """One step on the mean nats of (inputs, targets, mask) rows, shared between the processes row
    by row.
    """
    inputs, targets, mask = rows
    mine = slice(job.world.rank, None, job.world.size)
    gradients = [torch.zeros_like(weight) for weight in weights]
    if len(inputs[mine]):
        with torch.enable_grad(), autocast(job):
            hidden, _ = job.model.hidden(inputs[mine], context=job.context)
            nll = head_nll(job.model, hidden, targets[None, mine])[0]
            loss = (nll * mask[mine]).sum() / mask.sum()
        found = torch.autograd.grad(loss, weights, allow_unused=True)
        gradients = [
            zero if new is None else new for zero, new in zip(gradients, found, strict=True)
        ]
    sum_tensors(gradients, job.world)
    for weight, gradient in zip(weights, gradients, strict=True):
        weight.grad = gradient
    if clip > 0:
        nn.utils.clip_grad_norm_(weights, clip)
    optimizer.step()
    optimizer.zero_grad()


def trainable(model: LanguageModel, freeze: tuple[str, ...]) -> list[nn.Parameter]:
    """The parameters that no entry of `freeze` (a name, or a dotted prefix of names) covers."""
    names = [name for name, _ in model.named_parameters()]
    for entry in freeze:
        if not any(covers(entry, name) for name in names):
            tops = sorted({name.removeprefix("members.0.").split(".")[0] for name in names})
            raise OptionsError(
                f"freeze {entry!r} names no parameter; they begin: {', '.join(tops)}"
            )
    kept = [
        p
        for name, p in model.named_parameters()
        if not any(covers(entry, name) for entry in freeze)
    ]
    if not kept:
        raise OptionsError(f"freeze {', '.join(freeze)} leaves nothing to train")
    return kept


def covers(entry: str, name: str) -> bool:
    """Whether a freeze entry covers a parameter's name; one without a member's prefix covers it in
    every member.
    """
    own = name.split(".", 2)[2] if name.startswith("members.") else name
    return any(each == entry or each.startswith(entry + ".") for each in (name, own))
