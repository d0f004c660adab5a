"""One step of a model as an ONNX graph: token and state in, logits and state out. No torch.

The equations are those of the components, for one token; shapes are in the letters B (batch), D
(width), H and G (heads, and of keys), E (head width), S (span), V (vocabulary).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import log
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from niblick.components import MLP
from niblick.components.attention import rotary_base
from niblick.components.base import VirtualLayer
from niblick.components.bigram import NO_TOKEN
from niblick.exchange.onnx.graph import Graph
from niblick.plan import Plan

_WORD = 1 << 32
Weights = Mapping[str, NDArray[np.float32]]


@dataclass
class Step:
    """The graph of one token for `plan`; after `build`, `after` names the state it leaves.

    Constants and state of an ensemble's member have names that begin with `prefix`.
    """

    plan: Plan
    weights: Weights
    graph: Graph = field(default_factory=Graph)
    prefix: str = ""
    after: dict[str, str] = field(default_factory=dict)

    def build(self) -> str:
        """Write the step, and its outputs that are the state's names with "new."; the logits."""
        g, model = self.graph, self.plan.model
        self.bos = g.op("Equal", "token", g.number(model.bos_id, np.int64))  # (B,)
        fresh = g.cast(self.bos if model.document_mask else g.op("And", self.bos, self.no()), "f4")
        self.kept = g.op("Sub", g.number(1.0), g.reshape(fresh, -1, 1))  # (B, 1): 0 at a BOS
        self.rotation()
        self.documents()
        x = self.embed()
        self.embedded = self.value_embedding()
        x0, skips = x, list[str]()
        for layer in self.plan.layers:
            if layer.pop is not None:
                x = g.add(x, g.mul(self.row("skip_weights", layer.pop), skips.pop()))
            x = self.block(layer, x, x0)
            if layer.sidecar_site is not None:
                x = self.sidecar(layer.sidecar_site, x)
            if layer.push:
                skips.append(x)
        for name, value in self.after.items():
            g.named(f"new.{self.prefix}{name}", "Identity", value)
        return self.head(g.rms(x))

    def constant(self, name: str, value: ArrayLike) -> str:
        """A tensor of the file that belongs to this model."""
        return self.graph.constant(self.prefix + name, value)

    def no(self) -> str:
        """False."""
        return self.graph.constant("false", np.array(False))

    def weight(self, name: str) -> str:
        """A parameter as it is."""
        return self.constant(name, self.weights[name])

    def row(self, name: str, index: int) -> str:
        """One row of a parameter."""
        return self.constant(f"{name}.{index}", self.weights[name][index])

    def linear(self, x: str, name: str) -> str:
        """x (.., in) through the map `name` (out, in), which is stored turned."""
        matrix = self.constant(f"{name}.T", self.weights[name].T)
        return str(self.graph.op("MatMul", x, matrix))

    def sigmoid(self, name: str) -> str:
        """Of a parameter, computed here."""
        wide = self.weights[name].astype(np.float64)
        value = (1 / (1 + np.exp(-wide))).astype(np.float32)
        return self.constant(f"{name}.sigmoid", value)

    def previous(self, name: str, x: str) -> str:
        """What `name` remembers of x (B, C), zero at a BOS; x is remembered in its place."""
        self.after[name] = x
        return self.graph.mul(self.prefix + name, self.kept)

    def rotation(self) -> None:
        """cos and sin (R/2,) of the position; angles in float64, brought within one turn."""
        g, model = self.graph, self.plan.model
        exponents = np.arange(model.rope_dims // 2) * (-2.0 / model.rope_frequency_dims)
        steps = rotary_base(model, model.context) ** exponents
        angles = g.mul(g.cast("position", "f8"), g.constant("frequencies", steps))
        turned = g.cast(g.op("Mod", angles, g.number(2 * np.pi, np.float64), fmod=1), "f4")
        self.cos, self.sin = g.op("Cos", turned), g.op("Sin", turned)

    def documents(self) -> None:
        """Where each sequence's document starts (B, 1), where attention stays within documents."""
        g = self.graph
        self.first = None
        if self.plan.model.document_attention == "within":
            bos = g.reshape(self.bos, -1, 1)
            self.first = g.op("Where", bos, "position", f"{self.prefix}document.start")
            self.after["document.start"] = self.first

    def embed(self) -> str:
        """x0 (B, D) = smear(rms(token + bigram))."""
        g, model = self.graph, self.plan.model
        x = g.op("Gather", self.weight("tok_emb.weight"), "token")
        if model.bigram.enabled:
            x = g.add(x, self.bigram())
        x = g.rms(x)
        if model.smear.enabled:
            gate, before = self.sigmoid("smear.gate"), self.previous("smear.last", x)
            x = g.lerp(x, before, gate)
        return x

    def bigram(self) -> str:
        """The row of the hash of this token and the last, in the arithmetic of 32-bit integers."""
        g, options = self.graph, self.plan.model.bigram
        token = g.reshape("token", -1, 1)
        none, last = g.number(NO_TOKEN, np.int64), f"{self.prefix}bigram.last"
        if self.plan.model.document_mask:
            last = g.op("Where", g.reshape(self.bos, -1, 1), none, last)
        self.after["bigram.last"] = token
        first = g.mul(token, g.number(36313, np.int64))
        mixed = g.op("BitwiseXor", first, g.mul(last, g.number(27191, np.int64)))
        half, word = g.number(_WORD // 2, np.int64), g.number(_WORD, np.int64)
        wrapped = g.op("Sub", g.op("Mod", g.add(mixed, half), word), half)
        hashed = g.op("Mod", wrapped, g.number(options.buckets - 1, np.int64))
        empty = g.number(options.buckets - 1, np.int64)
        index = g.op("Where", g.op("Equal", last, none), empty, hashed)
        rows = g.op("Gather", self.weight("bigram.embed.weight"), g.reshape(index, -1))
        if options.projection:
            rows = self.linear(rows, "bigram.proj.weight")
        return g.mul(rows, self.weight("bigram.scale"))

    def value_embedding(self) -> str | None:
        """The token's row (B, G * E) before a layer's scale."""
        if not self.plan.model.value_embedding.enabled:
            return None
        rows = self.graph.op("Gather", self.weight("ve_embed.weight"), "token")
        return self.linear(rows, "ve_proj.weight")

    def block(self, layer: VirtualLayer, x: str, x0: str) -> str:
        """x = mix(x, x0); x = x + a * mixer(s * rms(x)); x = x + b * mlp(s * rms(x))."""
        g = self.graph
        if self.plan.model.residual_mix.enabled:
            mix = f"{layer.scalars}.resid_mix"
            x = g.add(g.mul(self.row(mix, 0), x), g.mul(self.row(mix, 1), x0))
        mixer: Any = self.token_shift if layer.mixer == "token-shift" else self.attention
        scale = g.number(layer.scale)
        mixed = mixer(layer, g.mul(scale, g.rms(x)))
        x = g.add(x, g.mul(self.weight(f"{layer.scalars}.attn_scale"), mixed))
        mixed = self.mlp(layer, g.mul(scale, g.rms(x)))
        return g.add(x, g.mul(self.weight(f"{layer.scalars}.mlp_scale"), mixed))

    def mlp(self, layer: VirtualLayer, u: str) -> str:
        """W_2 act(W_1 u)^2."""
        g, slope = self.graph, MLP.slope(self.plan.model)
        hidden = self.linear(u, f"{layer.block}.mlp.fc.weight")
        active = g.op("LeakyRelu", hidden, alpha=slope)
        return self.linear(g.mul(active, active), f"{layer.block}.mlp.proj.weight")

    def token_shift(self, layer: VirtualLayer, u: str) -> str:
        """sigmoid(W_r r) * (W_v relu(W_k k)^2)."""
        g, at = self.graph, f"{layer.block}.mixer"
        before = self.previous(f"layers.{layer.index}.shift", u)
        r = g.lerp(before, u, self.sigmoid(f"{at}.mix_r"))
        k = g.lerp(before, u, self.sigmoid(f"{at}.mix_k"))
        active = g.op("Relu", self.linear(k, f"{at}.W_k.weight"))
        gate = g.op("Sigmoid", self.linear(r, f"{at}.W_r.weight"))
        return g.mul(gate, self.linear(g.mul(active, active), f"{at}.W_v.weight"))

    def attention(self, layer: VirtualLayer, u: str) -> str:
        """W_o of the heads' outputs, (B, D) in and out."""
        g, model, at = self.graph, self.plan.model, f"{layer.block}.attn"
        options, width = model.attention, model.head_dim
        q, k, v = (self.linear(u, f"{at}.{name}.weight") for name in ("c_q", "c_k", "c_v"))
        if layer.value_embedding:
            scale = self.weight(f"ve_scales.{layer.index}")
            v = g.add(v, g.mul(scale, str(self.embedded)))
        if options.kv_shift:
            k = self.shifted(k, f"{at}.k_shift_mix", f"layers.{layer.index}.k_shift")
            v = self.shifted(v, f"{at}.v_shift_mix", f"layers.{layer.index}.v_shift")
        q, k, v = (g.reshape(each, 0, -1, width) for each in (q, k, v))
        q = self.turned(q, f"{layer.gains}.q_gain" if options.q_gain is not None else None)
        k = self.turned(k, f"{layer.gains}.k_gain" if options.k_gain else None)
        groups = options.kv_heads
        q = g.reshape(q, 0, groups, options.heads // groups, width)
        y = self.attend(layer, q, k, v)  # (B, G, H/G, E)
        own = g.op("Unsqueeze", v, g.ints(2))  # (B, G, 1, E)
        if options.local_value:
            mix = self.weights[f"{at}.local_v_mix"].reshape(groups, -1, 1)
            y = g.add(y, g.mul(self.constant(f"{at}.local_v_mix", mix), own))
        if layer.xsa:
            norm = g.op("ReduceL2", own, g.ints(-1), keepdims=1)
            unit = g.op("Div", own, g.op("Max", norm, g.number(1e-12)))
            along = g.op("ReduceSum", g.mul(y, unit), g.ints(-1), keepdims=1)
            y = g.op("Sub", y, g.mul(along, unit))
        return self.linear(g.reshape(y, 0, model.dim), f"{at}.proj.weight")

    def shifted(self, x: str, mix: str, name: str) -> str:
        """x + mix * prev(x) for x (B, G * E), mix (G,)."""
        wide = np.repeat(self.weights[mix], self.plan.model.head_dim)
        factor = self.constant(f"{mix}.wide", wide)
        return self.graph.add(x, self.graph.mul(factor, self.previous(name, x)))

    def turned(self, x: str, gain: str | None) -> str:
        """gain * rotate(rms(x)) for x (B, heads, E), each where the recipe says so."""
        g, model = self.graph, self.plan.model
        half = model.rope_dims // 2
        if model.attention.qk_norm:
            x = g.rms(x)
        if half:
            a, b = g.slice(x, 0, half, 2), g.slice(x, half, 2 * half, 2)
            first = g.add(g.mul(a, self.cos), g.mul(b, self.sin))
            second = g.op("Sub", g.mul(b, self.cos), g.mul(a, self.sin))
            rest = [g.slice(x, 2 * half, model.head_dim, 2)] * (2 * half < model.head_dim)
            x = g.concat(first, second, *rest, axis=2)
        if gain is None:
            return x
        return g.mul(x, self.constant(f"{gain}.column", self.weights[gain][:, None]))

    def attend(self, layer: VirtualLayer, q: str, k: str, v: str) -> str:
        """Softmax over the ring of `span` keys, of which the oldest may still be empty."""
        g, name, span = self.graph, f"layers.{layer.index}", layer.span
        keys, values = (
            g.concat(
                g.slice(f"{self.prefix}{name}.{kind}", 1, span, 2),
                g.op("Unsqueeze", new, g.ints(2)),
                axis=2,
            )
            if span > 1
            else g.op("Unsqueeze", new, g.ints(2))
            for kind, new in (("keys", k), ("values", v))
        )
        self.after[f"{name}.keys"], self.after[f"{name}.values"] = keys, values
        scores = g.op("MatMul", q, g.op("Transpose", keys, perm=[0, 1, 3, 2]))
        scores = g.mul(scores, g.number(self.plan.model.head_dim**-0.5))
        ages = g.constant(f"ages:{span}", np.arange(1 - span, 1, dtype=np.int64))
        at = g.add("position", ages)  # (S,): where each key stands
        hidden = g.op("Less", at, g.number(0, np.int64))
        if self.first is not None:
            hidden = g.op("Or", hidden, g.op("Less", at, self.first))  # (B, S)
            hidden = g.op("Unsqueeze", hidden, g.ints(1, 2))
        scores = g.op("Where", hidden, g.number(-np.inf), scores)
        return str(g.op("MatMul", g.op("Softmax", scores, axis=-1), values))

    def sidecar(self, site: int, x: str) -> str:
        """x + scale * W_p(silu(W_g n + gate) * conv(W_v n)), n = rms(x)."""
        g, name = self.graph, f"sidecar.{site}"
        n, kernel = g.rms(x), self.weights["shared_sparse.local.weight"][:, 0]  # (S, K)
        gate = self.linear(n, "shared_sparse.gate.weight")
        gate = g.add(gate, self.row("shared_sparse.site_gate.weight", site))
        gate = g.mul(gate, g.op("Sigmoid", gate))
        past = g.mul(self.prefix + name, g.op("Unsqueeze", self.kept, g.ints(1)))
        value = g.op("Unsqueeze", self.linear(n, "shared_sparse.value.weight"), g.ints(1))
        taps = g.concat(past, value, axis=1)  # (B, K, S)
        self.after[name] = g.slice(taps, 1, kernel.shape[1], 1)
        weighted = g.mul(taps, self.constant("shared_sparse.kernel", kernel.T))
        local = g.mul(gate, g.op("ReduceSum", weighted, g.ints(1), keepdims=0))
        added = self.linear(local, "shared_sparse.proj.weight")
        return g.add(x, g.mul(self.row("shared_sparse_scale", site), added))

    def head(self, hidden: str) -> str:
        """The logits c tanh(z / c)."""
        g, model = self.graph, self.plan.model
        z = self.linear(hidden, "tok_emb.weight" if model.tied else "lm_head.weight")
        if model.softcap is not None:
            cap = g.number(model.softcap)
            z = g.mul(cap, g.op("Tanh", g.op("Div", z, cap)))
        return z


def mean_probability(graph: Graph, logits: list[str]) -> str:
    """ln of the mean of the probabilities that several logits (B, V) stand for."""
    if len(logits) == 1:
        return logits[0]
    logs = [graph.op("LogSoftmax", each, axis=-1) for each in logits]
    rows = graph.concat(*(graph.op("Unsqueeze", each, graph.ints(0)) for each in logs), axis=0)
    total = graph.op("ReduceLogSumExp", rows, graph.ints(0), keepdims=0)
    return str(graph.op("Sub", total, graph.number(log(len(logits)))))
