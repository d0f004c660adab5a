"""Shared sparse sidecar (systems.md section 3): one small gated filter applied after several
layers.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor

from niblick.model.mixers.base import Context
from niblick.model.shift import last_taps
from niblick.model.tree import Node


def sidecar(root: Node, x: Tensor, site: int, context: Context) -> Tensor:
    """x (B, T, D) -> x + scale_site * W_p(silu(W_g n + gate_site) * conv(W_v n)), n = rms(x)."""
    weights, name = root.shared_sparse, f"sidecar.{site}"
    n = context.ops.mix_norm(x, x, None, 1.0)[1]
    values, gate = context.ops.maps(n, (weights.value, weights.gate))
    kernel, last = cast(Tensor, weights.local.weight).squeeze(1), context.last(name)  # (S, K)
    if context.keep:
        context.remember(name, last_taps(values, last, context.boundary, kernel.shape[1] - 1))
    local = context.ops.gated_filter(
        values, gate, weights.site_gate.weight[site], kernel, last, context.boundary
    )
    (mixed,) = context.ops.maps(local, (weights.proj,))
    return context.ops.add(x, mixed, root.shared_sparse_scale[site])
