"""Shared sparse sidecar (systems.md section 3): one small gated filter applied after several layers."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from niblick.model.mixers.base import Context, rms
from niblick.model.shift import filter_taps, last_taps
from niblick.model.tree import Node


def sidecar(root: Node, x: Tensor, site: int, context: Context) -> Tensor:
    """x (B, T, D) -> x + scale_site * W_p(silu(W_g n + gate_site) * conv(W_v n)), n = rms(x)."""
    weights = root.shared_sparse
    n = rms(x)
    values = weights.value(n)
    name = f"sidecar.{site}"
    kernel = weights.local.weight.squeeze(1).to(values.dtype)  # (S, K)
    last = context.last(name)
    taps = filter_taps(values, last, context.boundary, kernel.shape[1])
    context.remember(name, last_taps(values, last, context.boundary, kernel.shape[1] - 1))
    local = sum((tap * kernel[:, i] for i, tap in enumerate(taps[1:], 1)), taps[0] * kernel[:, 0])
    gate = F.silu(weights.gate(n) + weights.site_gate.weight[site].to(n.dtype))
    mixed: Tensor = weights.proj(gate * local)
    scale: Tensor = root.shared_sparse_scale[site]
    return x + scale.to(x.dtype) * mixed
