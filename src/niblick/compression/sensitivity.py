"""How much each parameter's error costs: Kronecker factors of the Fisher information.

Labels are drawn from the model's own predictions, so that the gradient of a whole sequence is an
unbiased sample of the Fisher information of all its tokens: positions are independent and their
scores have mean zero. No hooks are needed, tied, looped and looked-up parameters come out right,
and a block visited often counts as often.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from niblick.codecs.base import Sensitivity
from niblick.codecs.matrices import as_matrix
from niblick.compression.calibration import Calibration
from niblick.errors import NiblickError
from niblick.model import LanguageModel, new_model
from niblick.recipe import Recipe
from niblick.units import Duration

_MARGIN = 1.25  # of the time that measuring is expected to take
Factors = tuple[NDArray[np.float64], NDArray[np.float64]]


def measure(
    model: LanguageModel,
    calibration: Calibration,
    *,
    seed: int,
    on_progress: Callable[[float], None] | None = None,
) -> dict[str, Sensitivity]:
    """Fisher factors of every exported parameter from the batches; adds to their seconds.

    `on_progress` is told the share of the sequences, or of the time limit, that is used.
    """
    started, before = perf_counter(), calibration.seconds
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, Factors] = {}
    tokens = calibration.sequences = 0
    for sequence in (row for batch in calibration.batches for row in torch.split(batch, 1)):
        spent = before + perf_counter() - started
        if calibration.limit is not None and tokens and spent >= calibration.limit:
            break
        _accumulate(model, found, sequence, generator)
        tokens += sequence.numel()
        calibration.sequences += 1
        if on_progress is not None:
            used = (
                (before + perf_counter() - started) / calibration.limit if calibration.limit else 0
            )
            on_progress(min(1.0, max(used, calibration.sequences / calibration.planned)))
    if not tokens:
        raise NiblickError(
            "no calibration tokens were given; this codec needs batches of training tokens"
        )
    calibration.seconds = before + perf_counter() - started
    return {
        name: Sensitivity(rows / tokens, columns / tokens)
        for name, (rows, columns) in found.items()
    }


def estimate_seconds(recipe: Recipe, calibration: Calibration, device: str = "cpu") -> float:
    """Seconds of a budget in seconds to keep for measuring on `device`; 0 for other budgets.

    Measured on two sequences with an untrained model; that time is added to the calibration's.
    """
    if Duration.parse(recipe.training.duration).unit != "seconds":
        return 0.0
    model, each = new_model(recipe.model, seed=recipe.seed).to(device), 0.0
    started = perf_counter()
    for row in calibration.batches[0][:2]:  # the first takes longer than the others
        began = perf_counter()
        measure(model, Calibration([row[None]]), seed=recipe.seed)
        each = perf_counter() - began
    calibration.seconds += perf_counter() - started
    return _MARGIN * each * calibration.planned


def _accumulate(
    model: LanguageModel, found: dict[str, Factors], sequence: Tensor, generator: torch.Generator
) -> None:
    """Add one sequence's gradient to the factors."""
    logits = model.logits(sequence.to(model.device)).flatten(0, 1)
    labels = _draw(logits.detach(), generator)
    named = dict(model.named_parameters())
    tensors = [named[p.name] for p in model.plan.exported]
    loss = F.cross_entropy(logits, labels, reduction="sum")
    grads = torch.autograd.grad(loss, tensors, allow_unused=True, materialize_grads=True)
    for parameter, grad in zip(model.plan.exported, grads, strict=True):
        matrix = torch.from_numpy(as_matrix(parameter, grad.cpu().numpy()))
        columns = (matrix.T @ matrix).double().numpy()
        rows = matrix.square().sum(1).double().numpy()
        if parameter.name in found:
            for total, part in zip(found[parameter.name], (rows, columns), strict=True):
                total += part
        else:
            found[parameter.name] = (rows, columns)


def _draw(logits: Tensor, generator: torch.Generator) -> Tensor:
    """One label (N,) for each row of `logits` (N, V), by inversion: one random number each."""
    mass = logits.softmax(-1).cumsum(-1)
    place = torch.rand(len(mass), 1, generator=generator).to(mass.device) * mass[:, -1:]
    return torch.searchsorted(mass, place).squeeze(-1).clamp_(max=mass.shape[1] - 1)
