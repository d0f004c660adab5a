"""A model recipe expanded into virtual layers, and the sum of its components' specs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import sqrt
from typing import TYPE_CHECKING, TypeVar

from niblick.components import (
    AFTER,
    BEFORE,
    MIXERS,
    MLP,
    RESIDUAL_MIX,
    SCALES,
    SKIPS,
    ComponentSpec,
    Matmul,
    Parameter,
    Role,
    StateEntry,
    VirtualLayer,
)
from niblick.errors import RecipeError
from niblick.limits import MAX_PARAMETERS, MAX_STATE_BYTES, did_you_mean, quoted

if TYPE_CHECKING:
    from niblick.recipe.model import ModelRecipe
    from niblick.recipe.shape import LayerSpec

T = TypeVar("T")
FLOAT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Plan:
    """A model before it exists: its virtual layers, and what its components declare, in order.

    `parameters` holds training-only heads too; `exported` leaves them out and is what sizes speak
    of. Of an ensemble, `layers` are those of each member, and all else is that of all members
    together; `members` are their plans.
    """

    model: ModelRecipe
    layers: tuple[VirtualLayer, ...]
    specs: tuple[ComponentSpec, ...]
    members: tuple[Plan, ...] = ()

    @cached_property
    def parameters(self) -> tuple[Parameter, ...]:
        """Each parameter once; a looped block's start as at its first visit."""
        found: dict[str, Parameter] = {}
        for parameter in (p for spec in self.specs for p in spec.parameters):
            found.setdefault(parameter.name, parameter)
        return tuple(found.values())

    @cached_property
    def exported(self) -> tuple[Parameter, ...]:
        """The parameters an artifact holds: all but training-only heads."""
        return tuple(p for p in self.parameters if p.role is not Role.HEAD)

    @cached_property
    def matmuls(self) -> tuple[Matmul, ...]:
        """Matrix products of one token, a looped block's once per visit."""
        return tuple(product for spec in self.specs for product in spec.matmuls)

    @cached_property
    def state(self) -> tuple[StateEntry, ...]:
        """Decode state, one entry per tensor."""
        return tuple(entry for spec in self.specs for entry in spec.state)

    @cached_property
    def state_names(self) -> frozenset[str]:
        """Names of the decode state's tensors."""
        return frozenset(entry.name for entry in self.state)

    @property
    def attends(self) -> bool:
        """Whether any layer is attention."""
        return any(layer.span for layer in self.layers)

    @property
    def parameter_count(self) -> int:
        """Number of exported parameters."""
        return sum(p.size for p in self.exported)

    @property
    def weight_blocks(self) -> int:
        """Number of distinct weight blocks."""
        return len(self.visits()) * self.model.members

    @property
    def depth(self) -> str:
        """How many virtual layers, in words that a noun follows."""
        count = str(len(self.layers))
        return f"{self.model.members} members of {count}" if self.members else count

    @property
    def flops_per_token(self) -> int:
        """Operations of one token: matrix products (2mnk), attention at its span, head included."""
        return sum(product.flops for product in self.matmuls)

    def decode_state_bytes(self, dtype: str = "float32") -> int:
        """Bytes of decode state at batch 1 with full rings, floats stored as `dtype`."""
        return sum(entry.bytes(FLOAT_BYTES[dtype]) for entry in self.state)

    def visits(self) -> dict[str, int]:
        """How often each weight block is visited per token."""
        return Counter(layer.block for layer in self.layers)

    def receptive_field(self, context: int) -> int | None:
        """How many earlier tokens can touch a prediction, None if there is no bound.

        Along a path through the layers, what each part reaches adds up.
        """
        reaches: list[int | None] = [
            part.reach(self.model) for part in (*BEFORE, *AFTER) if part.used(self.model)
        ]
        for layer in self.layers:
            reaches.append(MIXERS[layer.mixer].reach(self.model, layer, context))
        bounded = [reach for reach in reaches if reach is not None]
        return sum(bounded) if len(bounded) == len(reaches) else None


def make_plan(model: ModelRecipe) -> Plan:
    """Expand a model section; raises `RecipeError` for a mixer that is not registered."""
    plan = _ensemble(model) if model.members > 1 else _single(model)
    _check_sizes(plan)
    return plan


def _single(model: ModelRecipe) -> Plan:
    layers = _layers(model)
    specs = [part.spec(model) for part in BEFORE if part.used(model)]
    specs += [layer_spec(model, layer) for layer in layers]
    specs += [part.spec(model) for part in AFTER if part.used(model)]
    return Plan(model, layers, tuple(specs))


def _ensemble(model: ModelRecipe) -> Plan:
    member = _single(model.model_copy(update={"members": 1, "shared_tables": False}))
    prefixes, own = map(member_prefix, range(model.members)), not model.shared_tables
    specs = tuple(spec.within(prefix, tables=own) for prefix in prefixes for spec in member.specs)
    return Plan(model, member.layers, specs, (member,) * model.members)


def member_prefix(index: int) -> str:
    """What the names of an ensemble's member begin with; those of shared tables have no prefix."""
    return f"members.{index}."


def of_member(values: Mapping[str, T], index: int) -> dict[str, T]:
    """By their names in the member: what an ensemble's member has of its own, and what is
    shared.
    """
    prefix = member_prefix(index)
    shared = {name: each for name, each in values.items() if not name.startswith("members.")}
    own = {k.removeprefix(prefix): each for k, each in values.items() if k.startswith(prefix)}
    return shared | own


def member_prefixes(members: int) -> list[str]:
    """What the names of each of `members` begin with; those of a single model with nothing."""
    return [member_prefix(i) for i in range(members)] if members > 1 else [""]


def each_member(plan: Plan, values: Mapping[str, T]) -> list[tuple[Plan, Mapping[str, T]]]:
    """Plan and own values of each member of an ensemble; of any other model its own."""
    if not plan.members:
        return [(plan, values)]
    return [(member, of_member(values, i)) for i, member in enumerate(plan.members)]


def _check_sizes(plan: Plan) -> None:
    """Refuse what no machine of this project's users could hold, before anything is allocated."""
    for what, size, limit in (
        ("parameters", plan.parameter_count, MAX_PARAMETERS),
        ("bytes of decode state", plan.decode_state_bytes(), MAX_STATE_BYTES),
    ):
        if size > limit:
            raise RecipeError(f"a model of {size:,} {what}; at most {limit:,} are accepted")


def layer_spec(model: ModelRecipe, layer: VirtualLayer) -> ComponentSpec:
    """Everything that one visit needs: its scales, its mixer and its channel mixer."""
    parts = (SCALES, RESIDUAL_MIX, MIXERS[layer.mixer], MLP)
    return sum((part.spec(model, layer) for part in parts), ComponentSpec())


def _visits(model: ModelRecipe) -> list[tuple[str, LayerSpec]]:
    """(block name, spec) of every virtual layer: a segment's blocks in order, `loops` times."""
    return [
        (f"{segment.name}.{j}", spec)
        for segment in model.stack
        for _ in range(segment.loops)
        for j, spec in enumerate(segment.blocks)
    ]


def _layers(model: ModelRecipe) -> tuple[VirtualLayer, ...]:
    found, pops, n = [], SKIPS.places(model), model.depth
    sites = sorted(model.sidecar.layers) if model.sidecar.enabled else []
    for i, (block, spec) in enumerate(_visits(model)):
        if spec.mixer not in MIXERS:
            known = did_you_mean(spec.mixer, MIXERS) or f"; known: {', '.join(MIXERS)}"
            raise RecipeError(f"model.stack: unknown mixer {quoted(spec.mixer)} in {block}{known}")
        attends = MIXERS[spec.mixer].attends
        found.append(
            VirtualLayer(
                index=i,
                block=block,
                mixer=spec.mixer,
                scalars=f"vlayers.{i}" if model.scalars == "virtual" else block,
                span=(spec.window + 1 if spec.window else model.context) if attends else 0,
                scale=1 / sqrt(i + 1) if attends and model.depth_scale else 1.0,
                xsa=attends and _has_xsa(model, i),
                value_embedding=model.value_embedding.enabled and i in model.value_embedding.layers,
                sidecar_site=sites.index(i) if i in sites else None,
                push=model.skips.enabled and i < n // 2,
                pop=pops.get(i),
            )
        )
    return tuple(found)


def _has_xsa(model: ModelRecipe, index: int) -> bool:
    if model.attention.xsa_layers is not None:
        return index in model.attention.xsa_layers
    return index >= model.depth - model.attention.xsa_last
