"""The book of scores: every prediction is entered exactly once, and only what is entered may be
learnt from.

Adding zeros to a number does not change it, so the table that several processes fill in together is
bit for bit the one a single process would hold, wherever the numbers themselves do not depend on
who computes them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from niblick.errors import ScoreError
from niblick.evaluation.processes import sum_tensors
from niblick.runtime import World

Report = Callable[[float], None]
_SEAL = object()


@dataclass(frozen=True, eq=False)
class Scored:
    """Spans of predictions whose scores stand in a tally: the one thing that test-time training
    accepts.

    inputs and targets (B, T) int64, `mask` (B, T) float32 is 0 on padding, `count` is its sum. Only
    `Tally.scored` makes one, from spans that are entered; there is no other way to hand tokens to
    training.
    """

    inputs: Tensor
    targets: Tensor
    mask: Tensor
    count: int
    seal: object

    def __post_init__(self) -> None:
        if self.seal is not _SEAL:
            raise ScoreError(
                "only tokens that are scored may be learnt from; a tally hands them out"
            )


class Tally:
    """Negative log-likelihoods (nats, float32) of the predictions of one stream, each entered
    exactly once.

    `rows` is K, the number of tokens asked for at each prediction. With `whole` every process
    enters everything. `report` is told, at each entry, the share of the predictions that this
    process has entered. Scores stay on `device` until `collect`: entering waits for nothing.
    """

    def __init__(
        self,
        rows: int,
        predictions: int,
        *,
        whole: bool = False,
        report: Report | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self._nll = torch.zeros(rows, predictions, device=device)
        self._times = torch.zeros(predictions, dtype=torch.uint8)
        self._known = self._times
        self._whole = whole
        self._report, self._entered = report, 0

    def enter(self, start: int, nll: Tensor) -> None:
        """File the scores (K, n) of predictions start .. start + n - 1."""
        values = nll.detach().float()
        self._nll[:, start : start + values.shape[1]] += values
        self._times[start : start + values.shape[1]] += 1
        self._entered += values.shape[1]
        if self._report is not None:
            self._report(self._entered / max(1, len(self._times)))

    def exchange(self, world: World, device: torch.device) -> None:
        """Learn which predictions the other processes have entered by now; all processes must call
        this.
        """
        known = self._times.clone().to(device)
        if not self._whole:
            sum_tensors([known], world)
        self._known = known.cpu()

    def scored(self, tokens: Tensor, spans: Sequence[tuple[int, int]]) -> Scored:
        """Inputs and targets of predictions [start, end) of each span; `ScoreError` if one is not
        entered yet.
        """
        for start, end in spans:
            if not bool(((self._times[start:end] > 0) | (self._known[start:end] > 0)).all()):
                raise ScoreError(
                    f"predictions {start} to {end - 1} are not all scored; nothing may be learnt"
                    " from them"
                )
        length = max(end - start for start, end in spans)
        inputs, targets = tokens.new_zeros(len(spans), length), tokens.new_zeros(len(spans), length)
        mask = torch.zeros(len(spans), length, device=tokens.device)
        for row, (start, end) in enumerate(spans):
            inputs[row, : end - start] = tokens[start:end]
            targets[row, : end - start] = tokens[start + 1 : end + 1]
            mask[row, : end - start] = 1
        return Scored(inputs, targets, mask, sum(end - start for start, end in spans), _SEAL)

    def collect(self, world: World, device: torch.device) -> NDArray[np.float32]:
        """All scores (K, n - 1); between all processes each prediction was entered once."""
        nll, times = self._nll.clone().to(device), self._times.clone().to(device)
        if not self._whole:
            sum_tensors([nll, times], world)
        assert bool((times == 1).all()), "a prediction was scored twice or not at all"
        table: NDArray[np.float32] = nll.cpu().numpy()
        return table
