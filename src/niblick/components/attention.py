"""Grouped-query attention (systems.md sections 1-3): the mixers "window" and "full"."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from niblick.components.base import (
    MIXERS,
    ONES,
    ZEROS,
    Call,
    ComponentSpec,
    Entry,
    Init,
    Matmul,
    Mixer,
    Parameter,
    StateEntry,
    Technique,
    VirtualLayer,
    linear,
    matrix_init,
    setting,
    total,
    vector,
)
from niblick.components.token_shift import rewritten_stack
from niblick.components.value_embedding import VALUE_EMBEDDING

if TYPE_CHECKING:
    from torch import Tensor

    from niblick.plan import Plan
    from niblick.recipe import Recipe
    from niblick.recipe.model import ModelRecipe


def _heads(recipe: Recipe, plan: Plan) -> list[Entry]:
    options, rope = recipe.model.attention, recipe.model.attention.rope
    sizes = {"heads": options.heads, "kv_heads": options.kv_heads}
    rotary = {"dims": recipe.model.rope_dims, "base": rope.base}
    found = [
        {"name": "grouped-query attention", **sizes},
        {"name": "partial rotary embedding", **rotary},
    ]
    return found if plan.attends else []


def _xsa(recipe: Recipe, plan: Plan) -> list[Entry]:
    layers = [layer.index for layer in plan.layers if layer.xsa]
    return [{"name": "exclusive self attention", "layers": layers}] if layers else []


def _option(name: str, label: str, off: Any, key: str = "", shown: str = "") -> Technique:
    """One setting of the attention section, which `off` switches off; `shown` is a parameter."""
    key = key or name.replace("-", "_")

    def value(recipe: Recipe) -> Any:
        found: Any = recipe.model.attention
        for part in key.split("."):
            found = getattr(found, part)
        return found

    def card(recipe: Recipe, plan: Plan) -> list[Entry]:
        found = value(recipe)
        shows = {shown: found} if shown else {}
        return [{"name": label, **shows}] if plan.attends and found != off else []

    summary = _SUMMARIES.get(name, label)
    changes = {f"model.attention.{key}": off}
    return Technique(name=name, summary=summary, without=lambda recipe: changes, card=card)


_SUMMARIES = {"qk-norm": "normalised queries and keys", "rotary-rescaling": "rescaled rotary base"}
_OPTIONS = (
    Technique(
        name="rotary",
        summary="rotary embedding",
        without=setting(model__attention__rope__dims=0, model__attention__rope__train_length=None),
        card=_heads,
    ),
    _option("qk-norm", "QK norm", False),
    _option("q-gain", "query gain", None, shown="init"),
    _option("k-gain", "key gain", False),
    _option("kv-shift", "k/v shift mixing", False),
    _option("local-value", "local value residual", False),
    Technique(
        name="xsa",
        summary="exclusive self attention",
        without=setting(model__attention__xsa_last=0, model__attention__xsa_layers=None),
        card=_xsa,
    ),
    _option("rotary-rescaling", "rotary base rescaling", None, "rope.train_length", "train_length"),
)
_WINDOW = Technique(
    name="window",
    summary="windows (full attention in their place)",
    without=lambda recipe: rewritten_stack(recipe, r"^window:[0-9]+", "full"),
)


def rotary_base(model: ModelRecipe, context: int) -> float:
    """The base for a declared context: base * (T / T_train)^(R / (R - 2)) beyond T_train."""
    rope, dims = model.attention.rope, model.rope_dims
    if rope.train_length is None or context <= rope.train_length:
        return rope.base
    return float(rope.base * (context / rope.train_length) ** (dims / (dims - 2)))


class Attention(Mixer):
    """Softmax attention over `layer.span` positions with its optional gains, shifts and residuals.

    "window" sees as many earlier positions as the stack says, "full" the declared context.
    """

    attends = True

    def __init__(self, *, windowed: bool) -> None:
        self.windowed = windowed
        self.techniques = (_WINDOW, *_OPTIONS) if windowed else _OPTIONS

    def spec(self, model: ModelRecipe, layer: VirtualLayer) -> ComponentSpec:
        """Four matrices, control values per head, and a ring of keys and values."""
        dim, prefix = model.dim, f"{layer.block}.attn"
        kv_dim = model.attention.kv_heads * model.head_dim
        wide, narrow = matrix_init(model, dim, dim), matrix_init(model, kv_dim, dim)
        scores = Matmul(name=f"{prefix}.scores", flops=2 * 2 * dim * layer.span)
        return total(
            ComponentSpec(parameters=tuple(self._head_vectors(model, layer))),
            linear(f"{prefix}.c_q.weight", dim, dim, "attention", wide),
            linear(f"{prefix}.c_k.weight", kv_dim, dim, "attention", narrow),
            linear(f"{prefix}.c_v.weight", kv_dim, dim, "attention", narrow),
            linear(f"{prefix}.proj.weight", dim, dim, "attention", ZEROS),
            ComponentSpec(matmuls=(scores,), state=self._state(model, layer)),
        )

    def _head_vectors(self, model: ModelRecipe, layer: VirtualLayer) -> list[Parameter]:
        options, block = model.attention, f"{layer.block}.attn"
        heads, groups = (options.heads,), (options.kv_heads,)
        found: list[Parameter] = []
        if options.q_gain is not None:
            gain = Init(kind="constant", value=options.q_gain)
            found.append(vector(f"{layer.gains}.q_gain", heads, "attention", gain))
        if options.k_gain:
            found.append(vector(f"{layer.gains}.k_gain", groups, "attention", ONES))
        if options.kv_shift:
            names = (f"{block}.k_shift_mix", f"{block}.v_shift_mix")
            found += [vector(name, groups, "attention", ZEROS) for name in names]
        if options.local_value:
            found.append(vector(f"{block}.local_v_mix", heads, "attention", ZEROS))
        return found

    def _state(self, model: ModelRecipe, layer: VirtualLayer) -> tuple[StateEntry, ...]:
        ring, prefix = (model.attention.kv_heads, layer.span, model.head_dim), layer.index
        axis = None if self.windowed else 1
        names = [f"layers.{prefix}.keys", f"layers.{prefix}.values"]
        rings = tuple(StateEntry(name=name, shape=ring, context_axis=axis) for name in names)
        if not model.attention.kv_shift:
            return rings
        width = (model.attention.kv_heads * model.head_dim,)
        names = [f"layers.{prefix}.k_shift", f"layers.{prefix}.v_shift"]
        return (*rings, *(StateEntry(name=name, shape=width) for name in names))

    def span(self, layer: VirtualLayer, context: int) -> int:
        """How many positions a call with that declared context sees."""
        return layer.span if self.windowed else context

    def reach(self, model: ModelRecipe, layer: VirtualLayer, context: int) -> int:
        """The span, and one more where keys and values are shifted."""
        return self.span(layer, context) - 1 + int(model.attention.kv_shift)

    def forward(self, block: Any, u: Tensor, layer: VirtualLayer, call: Call) -> Tensor:
        """u (B, T, D) -> W_o of the heads' outputs; the spec has each optional part."""
        from niblick.components import functional as f

        model, weights = call.model, block.attn
        q, k, v = (
            f.split_heads(each(u), model.head_dim)
            for each in (weights.c_q, weights.c_k, weights.c_v)
        )  # (B, T, H or G, E)
        if layer.value_embedding:
            v = VALUE_EMBEDDING.add(v, layer, call)
        if model.attention.kv_shift:
            k = self._shifted(k, weights.k_shift_mix, f"layers.{layer.index}.k_shift", call)
            v = self._shifted(v, weights.v_shift_mix, f"layers.{layer.index}.v_shift", call)
        q_gain, k_gain = self.gains(layer, call)
        q, k = self._rotated(q, q_gain, call), self._rotated(k, k_gain, call)
        y = self._attend(q, k, v, layer, call)
        if model.attention.local_value:
            y = f.local_value(y, v, weights.local_v_mix)
        if layer.xsa:
            y = f.exclude(y, v)
        mixed: Tensor = weights.proj(y.flatten(2))
        return mixed

    def gains(self, layer: VirtualLayer, call: Call) -> tuple[Tensor | None, Tensor | None]:
        """Of queries and keys, where the recipe has them."""
        options, found = call.model.attention, call.root.get_submodule(layer.gains)
        return (
            found.q_gain if options.q_gain is not None else None,
            found.k_gain if options.k_gain else None,
        )

    def _shifted(self, x: Tensor, mix: Tensor, name: str, call: Call) -> Tensor:
        """x + mix * prev(x) for x (B, T, G, E), mix (G,)."""
        from niblick.components.functional import shift_mix

        last = call.last(name)
        call.remember(name, x[:, -1].flatten(1))
        return shift_mix(x, last, call.boundary, mix)

    def _rotated(self, x: Tensor, gain: Tensor | None, call: Call) -> Tensor:
        """gain * rotate(rms(x)) for x (B, T, heads, E), each where the recipe says so."""
        from niblick.components.functional import rms, rotate

        x = rotate(rms(x) if call.model.attention.qk_norm else x, call.rotary)
        return x if gain is None else x * gain.to(x.dtype)[:, None]

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, layer: VirtualLayer, call: Call) -> Tensor:
        """Softmax attention over the ring and the call's positions; (B, T, H, E) in and out."""
        import torch

        from niblick.components.banded import banded_attention

        q, k, v = (t.transpose(1, 2) for t in (q, k, v))  # (B, H or G, T, E)
        span, prefix = self.span(layer, call.context), f"layers.{layer.index}"
        if call.attend is not None:
            return call.attend(q.to(v.dtype), k.to(v.dtype), v, span).transpose(1, 2)
        if call.before is not None:
            k = torch.cat([call.before[f"{prefix}.keys"].to(k.dtype), k], dim=2)
            v = torch.cat([call.before[f"{prefix}.values"].to(v.dtype), v], dim=2)
        past, first = k.shape[2] - q.shape[2], call.document_first
        if first is not None:
            first = first - call.position + past
        if call.keep:
            call.remember(f"{prefix}.keys", _newest(k, span))
            call.remember(f"{prefix}.values", _newest(v, span))
        repeat = q.shape[1] // k.shape[1]
        if repeat > 1:
            k, v = (t.repeat_interleave(repeat, dim=1) for t in (k, v))
        valid = min(call.position, past)
        return banded_attention(q, k, v, span, valid, first).transpose(1, 2)


def _newest(t: Tensor, span: int) -> Tensor:
    """The newest `span` positions of t (B, G, T, E), zeros in front while there are fewer."""
    from torch.nn.functional import pad

    missing = span - t.shape[2]
    return pad(t, (0, 0, missing, 0)) if missing > 0 else t[:, :, -span:]


MIXERS.register("window")(Attention(windowed=True))
MIXERS.register("full")(Attention(windowed=False))
