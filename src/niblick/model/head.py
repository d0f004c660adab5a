"""The head and its loss at once: -ln p(target) of softcapped logits, a bounded number at a time.

Both gradients are made beside the loss, from the logits of one chunk, so that the logits of a whole
batch are never in memory, neither forward nor backward. An operator of torch: it is one node in a
compiled graph, whatever the number of chunks.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from niblick.model.graphs import one_graph

LOGITS = 1 << 25  # of one chunk: 128 MB in float32


def fused_head_loss(
    hidden: Tensor, weight: Tensor, targets: Tensor, cap: float | None, logits: int = LOGITS
) -> Tensor:
    """The mean of -ln p(target) in nats, float32, of the logits softcap(hidden @ weight.T).

    hidden (..., D), weight (V, D) of any float type, targets (...) int64. Equal to the plain form
    to rounding; gradients too. At most `logits` logits are held at a time.
    """
    loss: Tensor = torch.ops.niblick_head.loss(
        hidden.flatten(0, -2),
        weight,
        targets.flatten(),
        cap or 0.0,
        torch.is_grad_enabled(),
        logits,
    )[0]
    return loss


_SCHEMA = (  # not from annotations, which exported scripts do not have
    "(Tensor hidden, Tensor weight, Tensor targets, float cap, bool grads, SymInt logits)"
    " -> (Tensor, Tensor, Tensor)"
)


@torch.library.custom_op("niblick_head::loss", mutates_args=(), schema=_SCHEMA)
def _loss(
    hidden: Tensor, weight: Tensor, targets: Tensor, cap: float, grads: bool, logits: int
) -> tuple[Tensor, Tensor, Tensor]:
    """(mean nll, its gradient by hidden, its gradient by weight); empty gradients without
    `grads`.
    """
    rows = max(1, logits // weight.shape[0])
    low = weight.to(hidden.dtype)
    total = torch.zeros((), device=hidden.device)
    by_hidden = torch.empty_like(hidden if grads else hidden[:0])
    by_weight = torch.zeros_like(weight if grads else weight[:0], dtype=torch.float32)
    chunk = _compiled_chunk() if hidden.device.type == "cuda" else _chunk
    for start in range(0, len(hidden), rows):
        part = slice(start, start + rows)
        nll, slope = chunk(F.linear(hidden[part], low), targets[part], cap, len(hidden), grads)
        total += nll
        if slope is not None:
            torch.mm(slope, low, out=by_hidden[part])
            by_weight += slope.T @ hidden[part]
    return total / len(hidden), by_hidden, by_weight.to(weight.dtype)


def _chunk(
    z: Tensor, targets: Tensor, cap: float, count: int, grads: bool
) -> tuple[Tensor, Tensor | None]:
    """(summed nll, slope by z of the mean over `count`, in z's type) of logits z (N, V) before the
    cap.
    """
    bent = torch.tanh(z.float() / cap) if cap else None
    logits = z.float() if bent is None else cap * bent
    high = torch.logsumexp(logits, dim=1)
    nll = (high - logits.gather(1, targets[:, None])[:, 0]).sum()
    if not grads:
        return nll, None
    slope = torch.exp(logits - high[:, None])
    slope = slope.scatter_add(1, targets[:, None], torch.full_like(high, -1.0)[:, None])
    if bent is not None:
        slope = slope * (1 - bent * bent)
    return nll, (slope / count).to(z.dtype)


@cache
def _compiled_chunk() -> Any:
    """One kernel or two for what the plain form does in ten passes over the logits."""
    return one_graph(_chunk)


@_loss.register_fake
def _(
    hidden: Tensor, weight: Tensor, targets: Tensor, cap: float, grads: bool, logits: int
) -> tuple[Tensor, Tensor, Tensor]:
    by_hidden, by_weight = (hidden, weight) if grads else (hidden[:0], weight[:0])
    loss = hidden.new_empty((), dtype=torch.float32)
    return loss, torch.empty_like(by_hidden), torch.empty_like(by_weight)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _back(ctx: Any, slope: Tensor, *unused: Any) -> tuple[Tensor | None, ...]:
    by_hidden, by_weight = ctx.saved_tensors
    return slope.to(by_hidden.dtype) * by_hidden, slope.to(by_weight.dtype) * by_weight, *[None] * 4


_loss.register_autograd(_back, setup_context=_keep)
