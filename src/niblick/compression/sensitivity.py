"""How much each parameter's error costs: Kronecker factors of the Fisher information, from training
batches.

Labels are drawn from the model's own predictions, so that the gradient of a whole sequence is an
unbiased sample of the Fisher information of all its tokens: positions are independent and their
scores have mean zero. No hooks are needed, tied, looped and looked-up parameters come out right,
and a block visited often counts as often.
"""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from niblick.codecs.matrices import as_matrix
from niblick.compression.calibration import Calibration
from niblick.errors import NiblickError
from niblick.model import LanguageModel

Array = NDArray[np.float64]


@dataclass
class Sensitivity:
    """Fisher factors of one tensor in its (R, C) layout, per token, in nats per squared unit of
    weight.

    The cost of an error E is about 1/2 tr(L E A E^T) / t with t = tr L = tr A; `rows` is L's
    diagonal.
    """

    rows: Array
    columns: Array

    @property
    def trace(self) -> float:
        """tr A, the Fisher information of the whole tensor."""
        return float(self.columns.trace())


def measure(model: LanguageModel, calibration: Calibration, *, seed: int) -> dict[str, Sensitivity]:
    """Fisher factors of every exported parameter from the calibration batches; adds to
    `calibration.seconds`.
    """
    started, before = perf_counter(), calibration.seconds
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, Sensitivity] = {}
    tokens = calibration.sequences = 0
    for sequence in (row for batch in calibration for row in torch.split(batch, 1)):
        spent = before + perf_counter() - started
        if calibration.limit is not None and tokens and spent >= calibration.limit:
            break
        _accumulate(model, found, sequence, generator)
        tokens += sequence.numel()
        calibration.sequences += 1
    if not tokens:
        raise NiblickError(
            "no calibration tokens were given; this codec needs batches of training tokens"
        )
    for entry in found.values():
        entry.rows /= tokens
        entry.columns /= tokens
    calibration.seconds = before + perf_counter() - started
    return found


def _accumulate(
    model: LanguageModel,
    found: dict[str, Sensitivity],
    sequence: Tensor,
    generator: torch.Generator,
) -> None:
    """Add one sequence's gradient to the factors."""
    logits = model.logits(sequence).flatten(0, 1)
    labels = _draw(logits.detach(), generator)
    named = [(p, tensor) for p, tensor in zip(model.plan.exported, _tensors(model), strict=True)]
    loss = F.cross_entropy(logits, labels, reduction="sum")
    gradients = torch.autograd.grad(loss, [tensor for _, tensor in named], allow_unused=True)
    for (parameter, tensor), gradient in zip(named, gradients, strict=True):
        matrix = as_matrix(
            parameter, gradient if gradient is not None else torch.zeros_like(tensor)
        )
        right = (matrix.T @ matrix).double().numpy()
        rows = matrix.square().sum(1).double().numpy()
        entry = found.get(parameter.name)
        if entry is None:
            found[parameter.name] = Sensitivity(rows, right)
        else:
            entry.rows += rows
            entry.columns += right


def _draw(logits: Tensor, generator: torch.Generator) -> Tensor:
    """One label (N,) for each row of `logits` (N, V), by inversion: one random number each."""
    mass = logits.softmax(-1).cumsum(-1)
    place = torch.rand(len(mass), 1, generator=generator) * mass[:, -1:]
    return torch.searchsorted(mass, place).squeeze(-1).clamp_(max=mass.shape[1] - 1)


def _tensors(model: LanguageModel) -> list[Tensor]:
    named = dict(model.named_parameters())
    return [named[p.name] for p in model.plan.exported]
