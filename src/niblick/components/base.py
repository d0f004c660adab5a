"""What a component of the model declares, without torch.

A component states its parameters, matrix products and decode state once, as a `ComponentSpec`.
The plan sums the specs, the model allocates from them, optimizer and codecs group by role, and
imported checkpoints are checked against them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from math import prod
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from niblick.registry import Registry

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from niblick.plan import Plan
    from niblick.recipe import Recipe
    from niblick.recipe.model import ModelRecipe


class Role(StrEnum):
    """What a parameter is: optimizer groups, weight decay, QAT and codecs are functions of it."""

    EMBEDDING = "embedding"  # a table looked up by token or hash
    MATRIX = "matrix"  # a linear map, weight (out, in)
    HEAD = "head"  # an auxiliary output head, dropped at export
    CONVOLUTION = "convolution"  # a depthwise filter (channels, 1, width)
    VECTOR = "vector"  # control values per channel, head or site
    SCALAR = "scalar"  # a single control value


InitKind = Literal["constant", "normal", "overtone", "orthogonal", "linear", "phase"]


class Init(NamedTuple):
    """How a parameter starts.

    constant: `value`; normal: standard deviation `value`; overtone: normal, then singular values
    S_0 k^-1/2; orthogonal: gain `value`; linear: PyTorch's default for fan-in `value`; phase: rows
    (p, 1-p) with p=`value`.
    """

    kind: InitKind
    value: float = 0.0


ZEROS = Init(kind="constant", value=0.0)
ONES = Init(kind="constant", value=1.0)


class Parameter(NamedTuple):
    """One tensor: its published name, shape, role, initialisation and owning component."""

    name: str
    shape: tuple[int, ...]
    role: Role
    init: Init
    component: str

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)


class Matmul(NamedTuple):
    """Matrix products of one token's forward pass; `flops` counts 2mnk."""

    name: str
    flops: int


class StateEntry(NamedTuple):
    """One tensor of decode state, shape without the batch axis.

    `kind` "float" follows the stated dtype. Before any token it holds `fill`. The axis
    `context_axis`, if any, has the length of the declared context.
    """

    name: str
    shape: tuple[int, ...]
    kind: Literal["float", "int64"] = "float"
    fill: int = 0
    context_axis: int | None = None

    def bytes(self, float_bytes: int) -> int:
        """Bytes for a batch of one."""
        return prod(self.shape) * (float_bytes if self.kind == "float" else 8)


@dataclass(frozen=True, kw_only=True)
class ComponentSpec:
    """A component's declaration; names are complete (with the block's or the layer's prefix)."""

    parameters: tuple[Parameter, ...] = ()
    matmuls: tuple[Matmul, ...] = ()
    state: tuple[StateEntry, ...] = ()

    def __add__(self, other: ComponentSpec) -> ComponentSpec:
        return ComponentSpec(
            parameters=self.parameters + other.parameters,
            matmuls=self.matmuls + other.matmuls,
            state=self.state + other.state,
        )

    def within(self, prefix: str, *, tables: bool = True) -> ComponentSpec:
        """The same with `prefix` before every name; without `tables` theirs are kept."""
        kept = frozenset[Role]() if tables else {Role.EMBEDDING}
        return ComponentSpec(
            parameters=tuple(
                p if p.role in kept else p._replace(name=prefix + p.name) for p in self.parameters
            ),
            matmuls=tuple(p._replace(name=prefix + p.name) for p in self.matmuls),
            state=tuple(p._replace(name=prefix + p.name) for p in self.state),
        )


@dataclass(frozen=True, kw_only=True)
class VirtualLayer:
    """One step of the loop over the plan: one visit of a weight block.

    `block` names the weights; `scalars` prefixes the scales and the residual mix (the block itself,
    or `vlayers.i`). `scale` multiplies both normalised inputs. `span` is how many positions
    attention sees, the current one included (0 for mixers without attention). `pop` is the index of
    the skip weight, or None.
    """

    index: int
    block: str
    scalars: str
    mixer: str
    span: int = 0
    scale: float = 1.0
    xsa: bool = False
    value_embedding: bool = False
    sidecar_site: int | None = None
    push: bool = False
    pop: int | None = None

    @property
    def gains(self) -> str:
        """Prefix of the per-head gains: the block's attention, or the virtual layer's scalars."""
        return f"{self.block}.attn" if self.scalars == self.block else self.scalars


Entry = dict[str, Any]  # "name" and a technique's parameters
Changes = dict[str, Any]  # recipe key -> value


@dataclass(frozen=True, kw_only=True)
class Technique:
    """A choice that cards and ablations know by name.

    `name` and `summary` are those of `niblick ablate`; `without` gives the values (key -> value) of
    a recipe that lacks it, None where it cannot be left out. `card` gives its entries in the
    card's `group`, none where the recipe does not use it.
    """

    name: str
    summary: str = ""
    group: str = "architecture"
    without: Callable[[Recipe], Changes] | None = None
    card: Callable[[Recipe, Plan], list[Entry]] = lambda recipe, plan: []


def setting(**values: Any) -> Callable[[Recipe], Changes]:
    """Fixed values for `Technique.without`; `__` in a name stands for a dot."""
    changes = {key.replace("__", "."): value for key, value in values.items()}
    return lambda recipe: changes


def section_entry(name: str, section: Any, *left_out: str) -> Entry:
    """A card's entry whose parameters are a recipe section's values."""
    values = section.model_dump(mode="json")
    hidden = ("enabled", *left_out)
    return {"name": name, **{k: v for k, v in values.items() if k not in hidden and v is not None}}


def section_technique(section: str, technique: str, summary: str, card: str = "") -> Technique:
    """A technique that `model.<section>` turns on, with that section's values on the card.

    The card's entry is called `card`, or by the summary.
    """

    def entries(recipe: Recipe, plan: Plan) -> list[Entry]:
        values = getattr(recipe.model, section)
        return [section_entry(card or summary, values)] if values.enabled else []

    without = setting(**{f"model__{section}__enabled": False})
    return Technique(name=technique, summary=summary, without=without, card=entries)


def switch(name: str, used: Callable[[ModelRecipe], bool], **of_model: Any) -> Any:
    """A card of one entry `name` where `used`; `of_model` are its parameters' functions."""

    def card(recipe: Recipe, plan: Plan) -> list[Entry]:
        model = recipe.model
        return [{"name": name} | {k: f(model) for k, f in of_model.items()}] if used(model) else []

    return card


class Component:
    """A part that a model has once, such as an embedding; a model need not use it.

    `table` is the name by which the recipe's dropout knows its rows.
    """

    name: str
    table: str | None = None
    techniques: tuple[Technique, ...] = ()

    def used(self, model: ModelRecipe) -> bool:
        """Whether the model has it."""
        return True

    def spec(self, model: ModelRecipe) -> ComponentSpec:
        """What it declares in a model that uses it."""
        return ComponentSpec()

    def reach(self, model: ModelRecipe) -> int:
        """How many earlier tokens can touch what it gives, where it is used."""
        return 0


class Mixer:
    """A sequence mixer: an object, registered in `MIXERS` under the name that a stack gives it.

    `attends`: it takes exclusive self attention, a value embedding and a span. `windowed`: the
    stack names its window, as in "window:128".
    """

    attends = False
    windowed = False
    techniques: tuple[Technique, ...] = ()

    def spec(self, model: ModelRecipe, layer: VirtualLayer) -> ComponentSpec:
        """What one visit declares."""
        raise NotImplementedError

    def forward(self, block: Any, u: Tensor, layer: VirtualLayer, call: Call) -> Tensor:
        """u (B, T, D) -> (B, T, D), with the block's weights; state goes through `call`."""
        raise NotImplementedError

    def reach(self, model: ModelRecipe, layer: VirtualLayer, context: int) -> int | None:
        """How many earlier positions it looks at, None if it has no bound."""
        return None


MIXERS: Registry[Mixer] = Registry("mixer")


@dataclass
class Call:
    """One call's surroundings: the state before it, and where the state after it is collected.

    `boundary` (B, T): true where a document begins, None without masking. `document_first` (B, T):
    absolute position at which each token's document begins, None when attention runs across
    documents. `dtype` is that of the residual stream, `context` how many positions full attention
    sees. `factors`, by table: what dropout multiplies its rows by, (B, T, 1). `attend` is what
    computes attention in place of the plain form, in calls without state.
    """

    model: ModelRecipe
    root: Any
    tokens: Tensor
    boundary: Tensor | None
    rotary: tuple[Tensor, Tensor]
    before: Mapping[str, Tensor] | None
    context: int
    position: int
    keep: bool
    dtype: torch.dtype
    factors: Mapping[str, Tensor] = field(default_factory=dict)
    document_first: Tensor | None = None
    value_embedding: Tensor | None = None
    attend: Callable[[Tensor, Tensor, Tensor, int], Tensor] | None = None
    after: dict[str, Tensor] = field(default_factory=dict)

    def last(self, name: str) -> Tensor | None:
        """A state entry before this call, None at the start."""
        return None if self.before is None else self.before[name]

    def remember(self, name: str, value: Tensor) -> None:
        """Collect a state entry after this call; a view is copied, so no longer tensor stays."""
        if self.keep:
            whole = value.untyped_storage().nbytes() == value.nbytes
            self.after[name] = value if whole else value.clone()


def linear(name: str, out: int, into: int, component: str, init: Init) -> ComponentSpec:
    """A bias-free linear map (out, in) and its product of 2 * out * in operations per token."""
    shape, role = (out, into), Role.MATRIX
    parameter = Parameter(name=name, shape=shape, role=role, init=init, component=component)
    return ComponentSpec(
        parameters=(parameter,), matmuls=(Matmul(name=name, flops=2 * out * into),)
    )


def matrix_init(model: ModelRecipe, out: int, into: int, gain: float = 1.0) -> Init:
    """Orthogonal with `gain` where both sides are at least 64 and the recipe says so.

    PyTorch's default elsewhere.
    """
    if model.linear_init == "orthogonal" and min(out, into) >= 64:
        return Init(kind="orthogonal", value=gain)
    return Init(kind="linear", value=into)


def vector(name: str, shape: tuple[int, ...], component: str, init: Init) -> Parameter:
    """A control tensor: a scalar where it holds a single value, else a vector."""
    role = Role.SCALAR if prod(shape) == 1 else Role.VECTOR
    return Parameter(name=name, shape=shape, role=role, init=init, component=component)


def total(*specs: ComponentSpec) -> ComponentSpec:
    """All that several specs declare, in order."""
    return sum(specs, ComponentSpec())
