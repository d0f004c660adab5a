"""Expansion of a model recipe into virtual layers and the sums of their tables; knows sizes before
building.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import sqrt

from niblick.errors import RecipeError
from niblick.limits import MAX_PARAMETERS, MAX_STATE_BYTES, quoted
from niblick.plan import parts
from niblick.plan.layer import VirtualLayer
from niblick.plan.mixers import MIXER_TABLES, mlp_table
from niblick.plan.table import Parameter, Product, Role, StateEntry, Table
from niblick.recipe.model import ModelRecipe
from niblick.recipe.stack import ATTENTION_MIXERS, LayerSpec

FLOAT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Plan:
    """A model before it exists: its virtual layers and every parameter, product and state entry, in
    order.

    `parameters` holds training-only heads too; `exported` leaves them out and is what sizes speak
    of.
    """

    model: ModelRecipe
    layers: tuple[VirtualLayer, ...]
    tables: tuple[Table, ...]

    @cached_property
    def parameters(self) -> tuple[Parameter, ...]:
        """Every distinct parameter (a looped block counts once, and starts as its first visit
        says).
        """
        found: dict[str, Parameter] = {}
        for parameter in (p for table in self.tables for p in table.parameters):
            found.setdefault(parameter.name, parameter)
        return tuple(found.values())

    @cached_property
    def exported(self) -> tuple[Parameter, ...]:
        """The parameters an artifact holds: all but training-only heads."""
        return tuple(p for p in self.parameters if p.role is not Role.HEAD)

    @cached_property
    def products(self) -> tuple[Product, ...]:
        """Matrix products of one token, a looped block's once per visit."""
        return tuple(product for table in self.tables for product in table.products)

    @cached_property
    def state(self) -> tuple[StateEntry, ...]:
        """Decode state, one entry per tensor."""
        return tuple(entry for table in self.tables for entry in table.state)

    @cached_property
    def state_names(self) -> frozenset[str]:
        """Names of the decode state's tensors."""
        return frozenset(entry.name for entry in self.state)

    @property
    def parameter_count(self) -> int:
        """Number of exported parameters."""
        return sum(p.size for p in self.exported)

    @property
    def weight_blocks(self) -> int:
        """Number of distinct weight blocks."""
        return len({layer.block for layer in self.layers})

    @property
    def flops_per_token(self) -> int:
        """Forward operations of one token: matrix products (2mnk), attention at its span, head
        included.
        """
        return sum(product.flops for product in self.products)

    def decode_state_bytes(self, dtype: str = "float32") -> int:
        """Bytes of decode state at batch 1 with full rings, floats stored as `dtype`."""
        return sum(entry.bytes(FLOAT_BYTES[dtype]) for entry in self.state)

    def visits(self) -> dict[str, int]:
        """How often each weight block is visited per token."""
        counts: dict[str, int] = {}
        for layer in self.layers:
            counts[layer.block] = counts.get(layer.block, 0) + 1
        return counts


def make_plan(model: ModelRecipe) -> Plan:
    """Expand a validated model section into its plan; raises `RecipeError` for a mixer that is not
    registered.
    """
    layers = tuple(_layers(model))
    for layer in layers:
        if layer.mixer not in MIXER_TABLES:
            known = ", ".join(MIXER_TABLES)
            raise RecipeError(
                f"model.stack: unknown mixer {quoted(layer.mixer)} in {layer.block}; known: {known}"
            )
    n = len(layers)
    tables = [
        parts.embedding_table(model),
        parts.bigram_table(model, n),
        parts.smear_table(model),
        parts.value_embedding_table(model),
        parts.skips_table(model, n),
        parts.document_table(model),
    ]
    tables += [layer_table(model, layer, n) for layer in layers]
    tables += [parts.sidecar_table(model), parts.mtp_table(model)]
    plan = Plan(model, layers, tuple(tables))
    _check_sizes(plan)
    return plan


def _check_sizes(plan: Plan) -> None:
    """Refuse what no machine of this project's users could hold, before anything is allocated."""
    for what, size, limit in (
        ("parameters", plan.parameter_count, MAX_PARAMETERS),
        ("bytes of decode state", plan.decode_state_bytes(), MAX_STATE_BYTES),
    ):
        if size > limit:
            raise RecipeError(f"a model of {size:,} {what}; at most {limit:,} are accepted")


def layer_table(model: ModelRecipe, layer: VirtualLayer, layers: int) -> Table:
    """Everything that one visit needs: its scalars, its mixer and its channel mixer, one after the
    other.
    """
    found = (
        parts.scalars_table(model, layer, layers),
        MIXER_TABLES[layer.mixer](model, layer),
        mlp_table(model, layer),
    )
    return Table(
        parameters=tuple(p for table in found for p in table.parameters),
        products=tuple(p for table in found for p in table.products),
        state=tuple(s for table in found for s in table.state),
    )


def _visits(model: ModelRecipe) -> list[tuple[str, LayerSpec]]:
    """(block name, spec) of every virtual layer: each segment's blocks round-robin, `loops` times
    over.
    """
    return [
        (f"{segment.name}.{j}", spec)
        for segment in model.stack
        for _ in range(segment.loops)
        for j, spec in enumerate(segment.blocks)
    ]


def _layers(model: ModelRecipe) -> list[VirtualLayer]:
    visits = _visits(model)
    n = len(visits)
    pops = _pops(model, n)
    sites = (
        {layer: site for site, layer in enumerate(sorted(model.sidecar.layers))}
        if model.sidecar.enabled
        else {}
    )
    found = []
    for i, (block, spec) in enumerate(visits):
        attends = spec.mixer in ATTENTION_MIXERS
        found.append(
            VirtualLayer(
                index=i,
                block=block,
                mixer=spec.mixer,
                scalars=f"vlayers.{i}" if model.scalars == "virtual" else block,
                span=(spec.window + 1 if spec.window else model.context) if attends else 0,
                scale=1 / sqrt(i + 1) if attends and model.depth_scale else 1.0,
                xsa=attends and _has_xsa(model, i, n),
                value_embedding=model.value_embedding.enabled and i in model.value_embedding.layers,
                sidecar_site=sites.get(i),
                push=model.skips.enabled and i < n // 2,
                pop=pops.get(i),
            )
        )
    return found


def _has_xsa(model: ModelRecipe, index: int, layers: int) -> bool:
    if model.attention.xsa_layers is not None:
        return index in model.attention.xsa_layers
    return index >= layers - model.attention.xsa_last


def _pops(model: ModelRecipe, layers: int) -> dict[int, int]:
    """Virtual layer -> index of the skip weight it applies, counted in the order of popping."""
    if not model.skips.enabled:
        return {}
    first = layers // 2 if model.skips.pop == "early" else layers - layers // 2
    return {first + j: j for j in range(layers // 2)}
