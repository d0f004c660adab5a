"""Shared sparse sidecar (systems.md section 3): one small gated filter after several layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from niblick.components.base import (
    ZEROS,
    Call,
    Component,
    ComponentSpec,
    Init,
    Matmul,
    Parameter,
    Role,
    StateEntry,
    linear,
    section_technique,
    vector,
)

if TYPE_CHECKING:
    from torch import Tensor

    from niblick.recipe.model import ModelRecipe


class Sidecar(Component):
    """x + scale * W_p(silu(W_g n + gate) * conv(W_v n)), n = rms(x); gate and scale per site."""

    name = "sidecar"
    techniques = (section_technique("sidecar", "sidecar", "shared sparse sidecar"),)

    def used(self, model: ModelRecipe) -> bool:
        """As the recipe's section says."""
        return model.sidecar.enabled

    def spec(self, model: ModelRecipe) -> ComponentSpec:
        """Gate, value, depthwise filter and projection; a scale and a gate per site."""
        options = model.sidecar
        dim, width, sites = model.dim, options.width, len(options.layers)
        into, back = Init(kind="linear", value=dim), Init(kind="linear", value=width)
        maps = (
            linear("shared_sparse.gate.weight", width, dim, "sidecar", into),
            linear("shared_sparse.value.weight", width, dim, "sidecar", into),
            linear("shared_sparse.proj.weight", dim, width, "sidecar", back),
        )
        local = Parameter(
            name="shared_sparse.local.weight",
            shape=(width, 1, options.kernel),
            role=Role.CONVOLUTION,
            init=Init(kind="linear", value=options.kernel),
            component="sidecar",
        )
        gate, value, proj = (each.parameters[0] for each in maps)
        scale = vector("shared_sparse_scale", (sites, dim), "sidecar", ZEROS)
        site = vector("shared_sparse.site_gate.weight", (sites, width), "sidecar", ZEROS)
        flops, taps = sum(each.matmuls[0].flops for each in maps), (options.kernel - 1, width)
        return ComponentSpec(
            parameters=(scale, site, gate, value, local, proj),
            matmuls=tuple(Matmul(name=f"sidecar.{i}", flops=flops) for i in range(sites)),
            state=tuple(StateEntry(name=f"sidecar.{i}", shape=taps) for i in range(sites)),
        )

    def forward(self, root: Any, x: Tensor, site: int, call: Call) -> Tensor:
        """x (B, T, D) -> x + scale_site * W_p(silu(W_g n + gate_site) * conv(W_v n))."""
        from torch.nn.functional import silu

        from niblick.components.functional import causal_filter, last_taps, rms

        weights, name = root.shared_sparse, f"sidecar.{site}"
        n, kernel, last = rms(x), weights.local.weight.squeeze(1), call.last(name)  # (S, K)
        values, gate = weights.value(n), weights.gate(n)
        if call.keep:
            call.remember(name, last_taps(values, last, call.boundary, kernel.shape[1] - 1))
        gate = silu(gate + weights.site_gate.weight[site].to(gate.dtype))
        local = gate * causal_filter(values, kernel, last, call.boundary)
        added: Tensor = root.shared_sparse_scale[site].to(x.dtype) * weights.proj(local)
        return x + added

    def reach(self, model: ModelRecipe) -> int:
        """The filter's taps at each site."""
        return (model.sidecar.kernel - 1) * len(model.sidecar.layers)


SIDECAR = Sidecar()
