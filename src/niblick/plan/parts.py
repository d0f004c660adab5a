"""Tables of everything outside the mixers: embeddings, gates, scales, skips, sidecar and output
heads.
"""

from __future__ import annotations

from math import exp, sqrt

from niblick.plan.layer import VirtualLayer
from niblick.plan.table import (
    ONES,
    ZEROS,
    Init,
    Parameter,
    Product,
    Role,
    StateEntry,
    Table,
    linear,
    matrix_init,
    vector,
)
from niblick.recipe.model import ModelRecipe


def embedding_table(model: ModelRecipe) -> Table:
    """Token embedding, tied to the head or with a head of its own."""
    init = Init(kind=model.embedding.init, value=model.embedding.std)
    shape = (model.vocab_size, model.dim)
    found = [
        Parameter(
            name="tok_emb.weight",
            shape=shape,
            role=Role.EMBEDDING,
            init=init,
            component="embedding",
        )
    ]
    head = Product(name="head", flops=2 * model.vocab_size * model.dim)
    if not model.tied:
        found.append(
            Parameter(
                name="lm_head.weight", shape=shape, role=Role.MATRIX, init=ZEROS, component="head"
            )
        )
    return Table(parameters=tuple(found), products=(head,))


def bigram_table(model: ModelRecipe, layers: int) -> Table:
    """Table (M, width), a scale, a projection (D, width) or none; state: the last token."""
    options = model.bigram
    if not options.enabled:
        return Table()
    rows = Parameter(
        name="bigram.embed.weight",
        shape=(options.buckets, options.width),
        role=Role.EMBEDDING,
        init=ZEROS,
        component="bigram",
    )
    scale = vector("bigram.scale", (), "bigram", Init(kind="constant", value=options.scale))
    last = StateEntry(name="bigram.last", shape=(1,), kind="int64")
    if not options.projection:
        return Table(parameters=(scale, rows), state=(last,))
    start = matrix_init(model, model.dim, options.width, gain=1 / sqrt(2 * layers))
    proj, product = linear("bigram.proj.weight", model.dim, options.width, "bigram", start)
    return Table(parameters=(scale, rows, proj), products=(product,), state=(last,))


def smear_table(model: ModelRecipe) -> Table:
    """The smear gate (D,) and one vector of state."""
    if not model.smear.enabled:
        return Table()
    gate = vector("smear.gate", (model.dim,), "smear", ZEROS)
    return Table(parameters=(gate,), state=(StateEntry(name="smear.last", shape=(model.dim,)),))


def value_embedding_table(model: ModelRecipe) -> Table:
    """Value table (V, width), projection (G*E, width) and a scale per listed layer."""
    options = model.value_embedding
    if not options.enabled:
        return Table()
    out = model.attention.kv_heads * model.head_dim
    rows = Parameter(
        name="ve_embed.weight",
        shape=(model.vocab_size, options.width),
        role=Role.EMBEDDING,
        init=Init(kind="normal", value=options.std),
        component="value_embedding",
    )
    start = matrix_init(model, out, options.width)
    proj, product = linear("ve_proj.weight", out, options.width, "value_embedding", start)
    start = Init(kind="constant", value=options.scale)
    scales = tuple(
        vector(f"ve_scales.{i}", (1,), "value_embedding", start) for i in sorted(options.layers)
    )
    return Table(parameters=(rows, proj, *scales), products=(product,))


def scalars_table(model: ModelRecipe, layer: VirtualLayer, layers: int) -> Table:
    """Per block or per virtual layer: attn_scale (D,), mlp_scale (D,), resid_mix (2, D)."""
    dim = (model.dim,)
    found = [
        vector(f"{layer.scalars}.{name}", dim, "scales", ONES)
        for name in ("attn_scale", "mlp_scale")
    ]
    if model.residual_mix.enabled:
        phase = 1.0
        if model.residual_mix.init == "phase":
            phase = 1 / (1 + exp(-3 * (layer.index / max(layers - 1, 1) - 0.5)))
        init = Init(kind="phase", value=phase)
        found.append(vector(f"{layer.scalars}.resid_mix", (2, model.dim), "residual_mix", init))
    return Table(parameters=tuple(found))


def skips_table(model: ModelRecipe, layers: int) -> Table:
    """Skip weights (floor(n/2), D), ones."""
    if not model.skips.enabled or layers < 2:
        return Table()
    return Table(parameters=(vector("skip_weights", (layers // 2, model.dim), "skips", ONES),))


def sidecar_table(model: ModelRecipe) -> Table:
    """Shared sparse sidecar: gate, value, depthwise filter, projection; a gate and a scale per
    site.
    """
    options = model.sidecar
    if not options.enabled:
        return Table()
    dim, width, sites = model.dim, options.width, len(options.layers)
    gate = linear(
        "shared_sparse.gate.weight", width, dim, "sidecar", Init(kind="linear", value=dim)
    )
    value = linear(
        "shared_sparse.value.weight", width, dim, "sidecar", Init(kind="linear", value=dim)
    )
    proj = linear(
        "shared_sparse.proj.weight", dim, width, "sidecar", Init(kind="linear", value=width)
    )
    local = Parameter(
        name="shared_sparse.local.weight",
        shape=(width, 1, options.kernel),
        role=Role.CONVOLUTION,
        init=Init(kind="linear", value=options.kernel),
        component="sidecar",
    )
    site = (
        vector("shared_sparse_scale", (sites, dim), "sidecar", ZEROS),
        vector("shared_sparse.site_gate.weight", (sites, width), "sidecar", ZEROS),
    )
    per_site = tuple(
        Product(name=f"sidecar.{i}", flops=gate[1].flops + value[1].flops + proj[1].flops)
        for i in range(sites)
    )
    taps = (options.kernel - 1, width)
    state = tuple(StateEntry(name=f"sidecar.{i}", shape=taps) for i in range(sites))
    return Table(
        parameters=(*site, gate[0], value[0], local, proj[0]), products=per_site, state=state
    )


def mtp_table(model: ModelRecipe) -> Table:
    """Multi-token-prediction heads (V, D), zero at the start; no part of the exported model."""
    shape = (model.vocab_size, model.dim)
    heads = tuple(
        Parameter(
            name=f"mtp_heads.{i}.weight", shape=shape, role=Role.HEAD, init=ZEROS, component="mtp"
        )
        for i in range(model.mtp.heads)
    )
    return Table(parameters=heads)


def document_table(model: ModelRecipe) -> Table:
    """Where the current document starts, kept only when attention stays within documents."""
    if model.document_attention == "across":
        return Table()
    return Table(state=(StateEntry(name="document.start", shape=(1,), kind="int64"),))
