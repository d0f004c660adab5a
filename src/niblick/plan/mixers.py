"""Tables of the sequence mixers and the channel mixer (systems.md sections 1 and 3)."""

from __future__ import annotations

from collections.abc import Callable

from niblick.plan.layer import VirtualLayer
from niblick.plan.table import (
    ONES,
    ZEROS,
    Init,
    Parameter,
    Product,
    StateEntry,
    Table,
    linear,
    matrix_init,
    vector,
)
from niblick.recipe.model import ModelRecipe
from niblick.registry import Registry

MixerTable = Callable[[ModelRecipe, VirtualLayer], Table]
MIXER_TABLES: Registry[MixerTable] = Registry("mixer")


@MIXER_TABLES.register("token-shift")
def token_shift_table(model: ModelRecipe, layer: VirtualLayer) -> Table:
    """sigmoid(W_r r) * (W_v relu(W_k k)^2): three D x D maps, two mixes, one vector of state."""
    dim, prefix = model.dim, f"{layer.block}.mixer"
    mix = Init(kind="constant", value=model.token_shift.mix)
    maps = [
        linear(f"{prefix}.{name}.weight", dim, dim, "mixer", init)
        for name, init in (
            ("W_r", matrix_init(model, dim, dim)),
            ("W_k", matrix_init(model, dim, dim)),
            ("W_v", ZEROS),
        )
    ]
    mixes = tuple(vector(f"{prefix}.{name}", (dim,), "mixer", mix) for name in ("mix_r", "mix_k"))
    return Table(
        parameters=(*mixes, *(parameter for parameter, _ in maps)),
        products=tuple(product for _, product in maps),
        state=(StateEntry(name=f"layers.{layer.index}.shift", shape=(dim,)),),
    )


@MIXER_TABLES.register("full")
@MIXER_TABLES.register("window")
def attention_table(model: ModelRecipe, layer: VirtualLayer) -> Table:
    """Grouped-query attention over `layer.span` positions with its optional gains, shifts and
    residuals.
    """
    dim, head, prefix = model.dim, model.head_dim, f"{layer.block}.attn"
    kv_dim = model.attention.kv_heads * head
    maps = [
        linear(f"{prefix}.{name}.weight", out, dim, "attention", init)
        for name, out, init in (
            ("c_q", dim, matrix_init(model, dim, dim)),
            ("c_k", kv_dim, matrix_init(model, kv_dim, dim)),
            ("c_v", kv_dim, matrix_init(model, kv_dim, dim)),
            ("proj", dim, ZEROS),
        )
    ]
    scores = Product(name=f"{prefix}.scores", flops=2 * 2 * dim * layer.span)
    return Table(
        parameters=(*_head_vectors(model, layer), *(parameter for parameter, _ in maps)),
        products=(*(product for _, product in maps), scores),
        state=_attention_state(model, layer),
    )


def _head_vectors(model: ModelRecipe, layer: VirtualLayer) -> list[Parameter]:
    options, block = model.attention, f"{layer.block}.attn"
    heads, groups = (options.heads,), (options.kv_heads,)
    found: list[Parameter] = []
    if options.q_gain is not None:
        gain = Init(kind="constant", value=options.q_gain)
        found.append(vector(f"{layer.gains}.q_gain", heads, "attention", gain))
    if options.k_gain:
        found.append(vector(f"{layer.gains}.k_gain", groups, "attention", ONES))
    if options.kv_shift:
        found += [
            vector(f"{block}.{name}_shift_mix", groups, "attention", ZEROS) for name in ("k", "v")
        ]
    if options.local_value:
        found.append(vector(f"{block}.local_v_mix", heads, "attention", ZEROS))
    return found


def _attention_state(model: ModelRecipe, layer: VirtualLayer) -> tuple[StateEntry, ...]:
    ring = (model.attention.kv_heads, layer.span, model.head_dim)
    names = ["keys", "values"]
    entries = [StateEntry(name=f"layers.{layer.index}.{name}", shape=ring) for name in names]
    if model.attention.kv_shift:
        width = (model.attention.kv_heads * model.head_dim,)
        entries += [
            StateEntry(name=f"layers.{layer.index}.{name}", shape=width)
            for name in ("k_shift", "v_shift")
        ]
    return tuple(entries)


def mlp_table(model: ModelRecipe, layer: VirtualLayer) -> Table:
    """W_2 act(W_1 u)^2 with hidden width `model.mlp_dim`."""
    dim, hidden, prefix = model.dim, model.mlp_dim, f"{layer.block}.mlp"
    fc = linear(f"{prefix}.fc.weight", hidden, dim, "mlp", matrix_init(model, hidden, dim))
    proj = linear(f"{prefix}.proj.weight", dim, hidden, "mlp", ZEROS)
    return Table(parameters=(fc[0], proj[0]), products=(fc[1], proj[1]))
