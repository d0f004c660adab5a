"""What a run tells while it runs and when it ends, and the clock that counts training time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Progress:
    """One report: after an optimizer step, or (with `validation_bpb` new) after a validation.

    `fraction` is the share of the budget spent, `loss` in nats per token, `bpb` the same per byte
    of the training text, `seconds_left` an estimate. `checkpoint` names the newest checkpoint, ""
    before the first.
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
    validation_bpb: float | None = None
    checkpoint: str = ""


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """A finished or stopped run: the weights to export (averaged, float32, CPU, not rounded).

    `interrupted` is the number of the signal that stopped the run before its end, else 0.
    `seconds` is training time: steps, validation, averaging and, on the CPU, compilation; reading
    and writing checkpoints is not part of it. `validations` are (step, bits per byte) of the
    averaged weights.
    """

    tensors: dict[str, Tensor]
    seconds: float
    tokens: int
    steps: int
    passes: int
    interrupted: int
    compiled: bool
    precision: str
    validations: tuple[tuple[int, float], ...] = field(default=())


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
