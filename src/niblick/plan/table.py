"""What a component declares, without torch: parameters, matrix products and decode state.

The plan sums these tables, the model allocates from them, the optimizer and the quantizers group by
role, and imported checkpoints are checked against them; no number is stated twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from math import prod
from typing import Literal

from niblick.recipe.model import ModelRecipe


class Role(StrEnum):
    """What a parameter is; optimizer groups, weight decay, QAT and codecs are total functions of
    it.
    """

    EMBEDDING = "embedding"  # a table looked up by token or hash
    MATRIX = "matrix"  # a linear map, weight (out, in)
    HEAD = "head"  # an auxiliary output head, dropped at export
    CONVOLUTION = "convolution"  # a depthwise filter (channels, 1, width)
    VECTOR = "vector"  # control values per channel, head or site
    SCALAR = "scalar"  # a single control value


InitKind = Literal["constant", "normal", "overtone", "orthogonal", "linear", "phase"]


@dataclass(frozen=True, kw_only=True)
class Init:
    """How a parameter starts.

    constant: `value`; normal: standard deviation `value`; overtone: normal, then singular values
    S_0 k^-1/2; orthogonal: gain `value`; linear: PyTorch's default for fan-in `value`; phase: rows
    (p, 1-p) with p=`value`.
    """

    kind: InitKind
    value: float = 0.0


ZEROS = Init(kind="constant", value=0.0)
ONES = Init(kind="constant", value=1.0)


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One tensor of the model: its published name, shape, role, initialisation and owning
    component.
    """

    name: str
    shape: tuple[int, ...]
    role: Role
    init: Init
    component: str

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)


@dataclass(frozen=True, kw_only=True)
class Product:
    """Matrix products of one token's forward pass; `flops` counts 2mnk."""

    name: str
    flops: int


@dataclass(frozen=True, kw_only=True)
class StateEntry:
    """One tensor of decode state, shape without the batch axis; `kind` "float" follows the stated
    dtype.
    """

    name: str
    shape: tuple[int, ...]
    kind: Literal["float", "int64"] = "float"

    def bytes(self, float_bytes: int) -> int:
        """Bytes for a batch of one."""
        return prod(self.shape) * (float_bytes if self.kind == "float" else 8)


@dataclass(frozen=True, kw_only=True)
class Table:
    """A component's declaration; names are complete (with the block's or the layer's prefix)."""

    parameters: tuple[Parameter, ...] = ()
    products: tuple[Product, ...] = ()
    state: tuple[StateEntry, ...] = ()


def linear(name: str, out: int, into: int, component: str, init: Init) -> tuple[Parameter, Product]:
    """A bias-free linear map (out, in) and its product of 2 * out * in operations per token."""
    parameter = Parameter(
        name=name, shape=(out, into), role=Role.MATRIX, init=init, component=component
    )
    return parameter, Product(name=name, flops=2 * out * into)


def matrix_init(model: ModelRecipe, out: int, into: int, gain: float = 1.0) -> Init:
    """Orthogonal with `gain` where both sides are at least 64 and the recipe says so, else
    PyTorch's default.
    """
    if model.linear_init == "orthogonal" and min(out, into) >= 64:
        return Init(kind="orthogonal", value=gain)
    return Init(kind="linear", value=into)


def vector(name: str, shape: tuple[int, ...], component: str, init: Init) -> Parameter:
    """A control tensor: a scalar where it holds a single value, else a vector."""
    role = Role.SCALAR if prod(shape) == 1 else Role.VECTOR
    return Parameter(name=name, shape=shape, role=role, init=init, component=component)
