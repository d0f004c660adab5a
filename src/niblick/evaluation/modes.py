"""Negative log-likelihood of every token of a stream, by each mode, from full distributions.

Scoring hands the model inputs only; the target is looked up afterwards in a distribution over the
whole alphabet. No gradient is ever taken here, and the model is not changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from niblick.evaluation.tally import Report, Tally
from niblick.model import LanguageModel, State
from niblick.objective import token_nll
from niblick.optim import LOW_PRECISION
from niblick.runtime import World
from niblick.scoring.options import EvaluationOptions
from niblick.scoring.windows import (
    Window,
    chunked_windows,
    document_windows,
    equal_batches,
    padded_batches,
    pieces,
    share,
    sliding_windows,
)

_LOGITS = 1 << 25  # logits held at once: 128 MiB in float32
_LEAST_LENGTH = 128  # of rows on an accelerator
_CPU_TOKENS = 4096  # a longer pass leaves a processor's caches and costs more for each token


@dataclass(frozen=True)
class Job:
    """One stream to score, and how: `tokens` (n,) int64 on the model's device are what the model
    reads.

    `asked` (K, n) are the tokens whose likelihood is wanted: one row, the stream itself, but for
    proofs, which ask what a distribution gives to other tokens. Prediction i reads tokens 0 .. i
    and scores asked token i + 1.
    """

    model: LanguageModel
    tokens: Tensor
    asked: Tensor
    options: EvaluationOptions
    world: World
    on_progress: Report | None = None

    @property
    def context(self) -> int:
        """The declared context of every pass."""
        return self.options.context or self.model.recipe.context

    @property
    def predictions(self) -> int:
        """How many tokens are scored."""
        return max(len(self.tokens) - 1, 0)

    @property
    def piece(self) -> int:
        """Tokens of one forward pass."""
        limit = self.options.batch_tokens
        return min(limit, _CPU_TOKENS) if self.device.type == "cpu" else limit

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.tokens.device


def make_job(
    model: LanguageModel,
    tokens: NDArray[np.integer],
    options: EvaluationOptions,
    world: World,
    asked: NDArray[np.integer] | None = None,
) -> Job:
    """Put a token stream (n,) on the model's device; `asked` (K, n) is the stream itself where not
    given.
    """
    device = next(model.parameters()).device
    ids = torch.from_numpy(np.asarray(tokens).astype(np.int64)).to(device)
    wanted = (
        ids[None]
        if asked is None
        else torch.from_numpy(np.asarray(asked).astype(np.int64)).to(device)
    )
    return Job(model, ids, wanted, options, world)


def score_stream(job: Job) -> Tally:
    """Enter asked tokens 1 .. n-1 by the mode of the job's options; nothing is learnt here."""
    tally = Tally(len(job.asked), job.predictions, report=job.on_progress, device=job.device)
    with torch.no_grad(), scoring_precision(job):
        _PASSES[job.options.mode](job, tally)
    return tally


def _chunked(job: Job, tally: Tally) -> None:
    _score_windows(
        job, list(equal_batches(chunked_windows(job.predictions, job.context), job.piece)), tally
    )


def _sliding(job: Job, tally: Tally) -> None:
    windows = sliding_windows(job.predictions, job.context, job.options.stride)
    _score_windows(job, list(equal_batches(windows, job.piece)), tally)


def _score_windows(job: Job, batches: Sequence[tuple[Window, ...]], tally: Tally) -> None:
    """Every process takes every n-th batch: what a batch holds does not depend on the number of
    processes.
    """
    for batch in batches[job.world.rank :: job.world.size]:
        skipped = batch[0].first - batch[0].start
        inputs, targets = gather(job, batch)
        hidden, _ = job.model.hidden(inputs, context=job.context)
        nll = head_nll(job.model, hidden[:, skipped:], targets[:, :, skipped:])
        for row, window in enumerate(batch):
            tally.enter(window.first, nll[:, row])


def _document(job: Job, tally: Tally) -> None:
    """Documents of similar length side by side, padded behind their end where nothing is scored."""
    limit = job.piece
    windows = document_windows(job.tokens.cpu().numpy(), job.model.recipe.bos_id)
    for batch in padded_batches(windows, limit)[job.world.rank :: job.world.size]:
        if batch[0].length > limit:
            window = batch[0]
            stream(job, tally, job.model.empty_state(context=job.context), window.start, window.end)
            continue
        inputs, targets = gather(job, batch)
        hidden, _ = job.model.hidden(_of_few_shapes(inputs), context=job.context)
        nll = head_nll(job.model, hidden[: len(inputs), : inputs.shape[1]], targets)
        for row, window in enumerate(batch):
            tally.enter(window.start, nll[:, row, : window.length])


def _of_few_shapes(inputs: Tensor) -> Tensor:
    """Rows (B, T) for an accelerator, whose attention is compiled anew for every shape: both sizes
    are rounded up to powers of two, with token 0.
    """
    if inputs.device.type == "cpu":
        return inputs
    rows, length = (1 << (size - 1).bit_length() for size in inputs.shape)
    length = max(_LEAST_LENGTH, length)
    padding = (0, length - inputs.shape[1], 0, rows - inputs.shape[0])
    return torch.nn.functional.pad(inputs, padding)


def _streaming(job: Job, tally: Tally) -> None:
    """One pass in pieces. Each process takes consecutive pieces of the same cut, and first reads,
    unscored, as many pieces before its own as the model can remember: its state is then the one
    that a single pass would have.
    """
    size = job.piece
    cuts = pieces(job.predictions, size)
    mine = share(len(cuts), job.world.rank, job.world.size)
    if not mine:
        return
    memory = job.model.plan.receptive_field(job.context)
    warmup = mine.start if memory is None else min(mine.start, -(-memory // size))
    begin = mine.start - warmup
    state = replace(job.model.empty_state(context=job.context), position=begin * size)
    for index in range(begin, mine.start):
        _, state = job.model(job.tokens[None, slice(*cuts[index])], state)
    stream(job, tally, state, cuts[mine.start][0], cuts[mine.stop - 1][1])


def stream(job: Job, tally: Tally, state: State, start: int, end: int) -> State:
    """Score predictions [start, end) in pieces from `state`; returns the state after them."""
    for begin, stop in ((start + a, start + b) for a, b in pieces(end - start, job.piece)):
        hidden, after = job.model.hidden(job.tokens[None, begin:stop], state, keep=True)
        tally.enter(
            begin, head_nll(job.model, hidden, job.asked[:, None, begin + 1 : stop + 1])[:, 0]
        )
        assert after is not None
        state = after
    return state


def gather(job: Job, batch: Sequence[Window]) -> tuple[Tensor, Tensor]:
    """Inputs (B, T) and targets (K, B, T) of windows; shorter ones are padded behind with token
    0.
    """
    length = max(window.length for window in batch)
    if all(window.length == length for window in batch):  # one transfer, whatever the batch
        starts = torch.tensor([window.start for window in batch]).to(job.device, non_blocking=True)
        places = starts[:, None] + torch.arange(length, device=job.device)
        return job.tokens[places], job.asked[:, places + 1]
    inputs = job.tokens.new_zeros(len(batch), length)
    targets = job.tokens.new_zeros(len(job.asked), len(batch), length)
    for row, window in enumerate(batch):
        inputs[row, : window.length] = job.tokens[window.start : window.end]
        targets[:, row, : window.length] = job.asked[:, window.start + 1 : window.end + 1]
    return inputs, targets


def head_nll(model: LanguageModel, hidden: Tensor, targets: Tensor) -> Tensor:
    """Nats (K, B, T) of targets (K, B, T) from hidden (B, T, D), a bounded number of logits at a
    time.
    """
    step = max(1, _LOGITS // (model.recipe.vocab_size * hidden.shape[0]))
    parts = []
    for i in range(0, hidden.shape[1], step):
        logits = model.head(hidden[:, i : i + step])
        parts.append(
            torch.stack([token_nll(logits, asked) for asked in targets[:, :, i : i + step]])
        )
    return torch.cat(parts, dim=2)


@contextmanager
def scoring_precision(job: Job) -> Iterator[None]:
    """The job's precision for a block that takes no gradients.

    Accelerators hold the matrices themselves in bfloat16 then, as in training: their attention
    takes no autocast.
    """
    if job.options.precision != "bf16" or job.device.type == "cpu":
        with autocast(job):
            yield
        return
    matrices = [p for p in job.model.plan.parameters if p.role in LOW_PRECISION]
    named = dict(job.model.named_parameters())
    kept = [(named[p.name], named[p.name].data) for p in matrices if p.name in named]
    try:
        for parameter, value in kept:
            parameter.data = value.bfloat16()
        yield
    finally:
        for parameter, value in kept:
            parameter.data = value


def autocast(job: Job) -> torch.autocast:
    """The job's precision for the block."""
    return torch.autocast(job.device.type, torch.bfloat16, enabled=job.options.precision == "bf16")


_PASSES: dict[str, Callable[[Job, Tally], None]] = {
    "chunked": _chunked,
    "sliding": _sliding,
    "document": _document,
    "streaming": _streaming,
    "leaky-ttt": _sliding,
}
