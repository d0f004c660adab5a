"""How much each parameter's error costs: Kronecker factors of the Fisher information.

What is summed are squares of the training loss's gradient over batches of training text (the
empirical Fisher information): near the end of training its mean is small beside its scatter, and
the next token is as good a label as one that is drawn. Batches are large, since a row of a table
counts only where its token comes up, and they go through the kernels in training's precision. No
hooks are needed, tied, looped and looked-up parameters come out right, and a block visited often
counts as often.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from time import perf_counter

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from niblick.codecs.base import Sensitivity
from niblick.codecs.matrices import laid_out
from niblick.compression.calibration import Calibration
from niblick.errors import NiblickError
from niblick.model import LanguageModel, members_of, new_model
from niblick.model.accelerated import accelerate
from niblick.model.kernels import load_kernels, use_kernels
from niblick.optim import LOW_PRECISION
from niblick.plan import Role
from niblick.recipe import Recipe
from niblick.runtime import choose_precision
from niblick.units import Duration

_MARGIN = 1.25  # of the time that measuring is expected to take
_MOST_ROWS = 512  # of a matrix whose rows absorb errors: more take long, and gain little
Factors = list[Tensor]  # sums of A and of L, on the device


def measure(
    model: LanguageModel,
    calibration: Calibration,
    *,
    on_progress: Callable[[float], None] | None = None,
) -> dict[str, Sensitivity]:
    """Fisher factors of every exported parameter from the batches; adds to their seconds.

    `on_progress` is told the share of the sequences, or of the time limit, that is used.
    """
    started, before = perf_counter(), calibration.seconds
    found: dict[str, Factors] = {}
    tokens = calibration.sequences = 0
    copy = _as_in_training(model)
    for batch in calibration.batches:
        spent = before + perf_counter() - started
        if calibration.limit is not None and tokens and spent >= calibration.limit:
            break
        tokens += _accumulate(copy, found, batch.to(model.device))
        calibration.sequences += len(batch)
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
        name: _sensitivity(*(sums.double().cpu().numpy() / tokens for sums in each))
        for name, each in found.items()
    }


def _sensitivity(columns: NDArray[np.float64], rows: NDArray[np.float64]) -> Sensitivity:
    """From A and from L, all of it or its diagonal."""
    if rows.ndim == 1:
        return Sensitivity(rows, columns)
    return Sensitivity(np.diagonal(rows), columns, rows)


def estimate_seconds(recipe: Recipe, calibration: Calibration, device: str = "cpu") -> float:
    """Seconds of a budget in seconds to keep for measuring on `device`; 0 for other budgets.

    Measured on the first batch with an untrained model; that time is added to the calibration's.
    """
    if Duration.parse(recipe.training.duration).unit != "seconds":
        return 0.0
    model, each = new_model(recipe.model, seed=recipe.seed).to(device), 0.0
    if device != "cpu":  # to compile, as before training's clock
        measure(model, Calibration(calibration.batches[:1]))
    started = perf_counter()
    for _ in range(2):  # the first takes longer than the others
        began = perf_counter()
        measure(model, Calibration(calibration.batches[:1]))
        each = perf_counter() - began
    calibration.seconds += perf_counter() - started
    return _MARGIN * each * len(calibration.batches)


def _as_in_training(model: LanguageModel) -> LanguageModel:
    """A copy in training's precision, on the kernels where there are any."""
    copy = deepcopy(model)
    if choose_precision("auto", str(model.device)) == "bf16":
        named = dict(copy.named_parameters())
        for parameter in copy.plan.parameters:
            if parameter.role in LOW_PRECISION:
                named[parameter.name].data = named[parameter.name].data.bfloat16()
    if model.device.type == "cpu":
        use_kernels(copy, load_kernels())
    else:
        accelerate(copy)
    return copy


def _accumulate(model: LanguageModel, found: dict[str, Factors], batch: Tensor) -> int:
    """Add the squares of one batch's gradient to the factors; how many tokens it scored.

    Members of an ensemble count as if each were alone, which differs little from their mixture.
    """
    inputs, targets = batch[:, :-1].contiguous(), batch[:, 1:].contiguous()
    members = members_of(model)
    losses = [member.head_loss(member.hidden(inputs)[0], targets) for member in members]
    named, count = dict(model.named_parameters()), targets.numel()
    tensors = [named[p.name] for p in model.plan.exported]
    loss = torch.stack(losses).sum() * (count / len(members))
    grads = torch.autograd.grad(loss, tensors, allow_unused=True, materialize_grads=True)
    precise = torch.float32 if model.device.type == "mps" else torch.float64  # which has no more
    for parameter, grad in zip(model.plan.exported, grads, strict=True):
        matrix = laid_out(parameter, grad.float()).contiguous()
        together = parameter.role is Role.MATRIX and len(matrix) <= _MOST_ROWS
        rows = matrix @ matrix.T if together else matrix.square().sum(1)
        parts = [(matrix.T @ matrix).to(precise), rows.to(precise)]
        if parameter.name in found:
            for total, part in zip(found[parameter.name], parts, strict=True):
                total += part
        else:
            found[parameter.name] = parts
    return count
