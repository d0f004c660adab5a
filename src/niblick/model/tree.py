"""Parameters by their published names: a tree of modules, allocated and filled from a plan."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from niblick.plan import Init, Plan


class Node(nn.Module):
    """A named place in the tree."""

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...


class Linear(Node):
    """A place that holds a `weight` (out, in): called, it is the bias-free linear map.

    It computes in the weight's dtype, so that casting the matrices of a model casts its products.
    An adapter sets `extra`: what that gives of the input is added to the output.
    """

    extra: Callable[[Tensor], Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        out = nn.functional.linear(x.to(self.weight.dtype), self.weight)
        return out if self.extra is None else out + self.extra(x)


def build_tree(root: nn.Module, plan: Plan) -> None:
    """Hang an uninitialised float32 parameter for every entry of the plan below `root`."""
    for parameter in plan.parameters:
        *path, leaf = parameter.name.split(".")
        node = root
        for part in path:
            if part not in node._modules:
                node.add_module(part, Linear())
            node = node.get_submodule(part)
        node.register_parameter(leaf, nn.Parameter(torch.empty(parameter.shape)))


@torch.no_grad()
def initialise(root: nn.Module, plan: Plan, seed: int) -> None:
    """Fill every parameter as its spec says, from `seed` alone (drawn on the CPU in plan order)."""
    generator = torch.Generator().manual_seed(seed)
    tensors = dict(root.named_parameters())
    for parameter in plan.parameters:
        target = tensors[parameter.name]
        target.copy_(draw(parameter.shape, parameter.init, generator).to(target.device))


def draw(shape: tuple[int, ...], init: Init, generator: torch.Generator) -> Tensor:
    """One float32 tensor of `shape`; see `Init` for the kinds."""
    value = torch.empty(shape)
    if init.kind == "constant":
        return value.fill_(init.value)
    if init.kind == "phase":
        return torch.stack(
            [torch.full(shape[1:], init.value), torch.full(shape[1:], 1 - init.value)]
        )
    if init.kind == "orthogonal":
        nn.init.orthogonal_(value, gain=init.value, generator=generator)
        return value
    if init.kind == "linear":
        return value.uniform_(-(init.value**-0.5), init.value**-0.5, generator=generator)
    value.normal_(0.0, init.value, generator=generator)
    return _overtone(value) if init.kind == "overtone" else value


def _overtone(value: Tensor) -> Tensor:
    """Replace the singular values by S_0 k^-1/2, k = 1.. (systems.md section 2)."""
    u, s, v = torch.linalg.svd(value, full_matrices=False)
    spectrum = s[0] * torch.arange(1, s.numel() + 1, dtype=s.dtype).rsqrt()
    shaped: Tensor = (u * spectrum) @ v
    return shaped
