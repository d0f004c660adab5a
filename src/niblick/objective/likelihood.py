"""Negative log-likelihoods per token, in nats, from the model's full distributions."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from niblick.model import LanguageModel
from niblick.model.ensemble import Ensemble
from niblick.model.lm import NO_FACTORS
from niblick.plan import of_member


def training_loss(
    model: LanguageModel,
    inputs: Tensor,
    targets: Tensor,
    factors: Mapping[str, Tensor] = NO_FACTORS,
) -> tuple[Tensor, Tensor]:
    """(loss to minimise, mean next-token nll): the first adds the multi-token-prediction heads'
    mean loss.

    inputs and targets (B, T) int64; `targets[:, i]` follows `inputs[:, i]`. Head j is trained on
    the token j + 1 further on; positions without such a target inside the batch are left out.
    `factors`: see `LanguageModel.hidden`.
    """
    if isinstance(model, Ensemble):
        return _of_members(model, inputs, targets, factors)
    hidden, _ = model.hidden(inputs, factors=factors)
    nll = model.head_loss(hidden, targets)
    options = model.recipe.mtp
    if options.heads == 0 or inputs.shape[1] <= options.heads:
        return nll, nll
    extra = model.mtp_losses(hidden, targets)
    return nll + options.weight * torch.stack(extra).mean(), nll


def _of_members(
    model: Ensemble, inputs: Tensor, targets: Tensor, factors: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """The members' mean losses: each learns as if it were alone."""
    found = [
        training_loss(member, inputs, targets, of_member(factors, i))
        for i, member in enumerate(model.each)
    ]
    losses, nlls = zip(*found, strict=True)
    return torch.stack(losses).sum(), torch.stack(nlls).mean()
