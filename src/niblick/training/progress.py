"""What a run tells while it runs and when it ends, and the clock that counts training time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from niblick.data.dataset import Dataset
from niblick.data.shards import count_tokens, read_tokens

_SAMPLE = 65_536  # tokens


@dataclass(frozen=True, kw_only=True)
class Progress:
    """One report: after an optimizer step, or (with `validation_bpb` new) after a validation.

    `fraction` is the share of the budget spent, `loss` the training loss of the last step in nats
    per token, `bpb` the same per byte of the training text, `validation_loss` and `validation_bpb`
    those of the validation, `seconds_left` an estimate. `checkpoint` names the newest checkpoint,
    "" before the first.
    """

    step: int
    fraction: float
    seconds: float
    tokens: int
    loss: float
    bpb: float
    multiplier: float
    tokens_per_second: float
    seconds_left: float
    rounding: bool = False
    validation_loss: float | None = None
    validation_bpb: float | None = None
    checkpoint: str = ""

    def row(self) -> dict[str, float]:
        """What metrics.jsonl records of it."""
        row = {"step": self.step, "seconds": round(self.seconds, 3), "tokens": self.tokens}
        if self.validation_bpb is not None and self.validation_loss is not None:
            found = {"validation_loss": self.validation_loss, "validation_bpb": self.validation_bpb}
            return row | found
        speed = round(self.tokens_per_second, 1)
        measured = {"loss": self.loss, "bpb": self.bpb, "tokens_per_second": speed}
        return row | measured | {"multiplier": self.multiplier, "rounding": self.rounding}


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """A finished or stopped run: the weights to export (averaged, float32, CPU, not rounded).

    `interrupted` is the number of the signal that stopped the run before its end, else 0.
    `seconds` is training time: steps, validation, averaging and, on the CPU, compilation; reading
    and writing checkpoints is not part of it. `validations` are (step, bits per byte) of the
    averaged weights; `rounded` says whether late QAT took place.
    """

    tensors: dict[str, Tensor]
    seconds: float
    tokens: int
    steps: int
    passes: int
    interrupted: int
    compiled: bool
    precision: str
    rounded: bool = False
    validations: tuple[tuple[int, float], ...] = field(default=())


def bytes_per_token(dataset: Dataset) -> float:
    """An estimate, from the first tokens of the training text: the same however a run resumes."""
    path = dataset.shards("train")[0]
    tokens = read_tokens(path, 0, min(count_tokens(path), _SAMPLE))
    tokens = np.minimum(tokens, dataset.tokenizer.vocab_size - 1)  # others end the run elsewhere
    counted = dataset.tokenizer.byte_table.count(tokens[1:], tokens[:-1])
    return max(float(counted.sum()) / max(len(counted), 1), 1e-9)


class Clock:
    """Seconds of training time: runs from creation, stands still inside `paused`, can start at an
    earlier sum.
    """

    def __init__(self, seconds: float = 0.0) -> None:
        self._sum, self._since = seconds, time.perf_counter()

    @property
    def seconds(self) -> float:
        """Training time so far."""
        return self._sum + time.perf_counter() - self._since

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time inside the block is not training time."""
        before = self.seconds
        try:
            yield
        finally:
            self._sum, self._since = before, time.perf_counter()
