"""The engine in plain numpy: every published component as its equation, in float32.

It runs where no native library can, and is what the native engine is tested against without torch.
Shapes: T tokens of one slot, D width, H heads, G key/value heads, E head width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from niblick.codecs.quantized import Floats, Tensors, dequantized
from niblick.engine.arithmetic import rms, rotary_frequencies, sigmoid
from niblick.engine.base import Engine, Ids, Wanted
from niblick.errors import NiblickError
from niblick.plan import Plan, VirtualLayer

NO_TOKEN = -1
Ints = NDArray[np.int64]


@dataclass
class _Memory:
    """What one slot remembers: vectors and rings by name, and where its text and document began."""

    position: int = 0
    since: int = 0  # tokens back to the start of what may be mixed
    first: int = 0  # oldest position that attention sees
    token: int = NO_TOKEN
    arrays: dict[str, Floats] = field(default_factory=dict)


@dataclass
class _Call:
    """The tokens of one slot in one call, and what every layer needs to know of them."""

    tokens: Ints  # (T,)
    since: Ints  # (T,): how many tokens before each may be mixed into it
    first: Ints  # (T,): oldest position that each may attend to
    memory: _Memory
    cos: Floats  # (T, R / 2)
    sin: Floats
    values: Floats | None = None  # the value embedding (T, G * E)

    def before(self, name: str, x: Floats, distance: int = 1) -> Floats:
        """x (T, C) `distance` positions earlier, zeros beyond the document; see `remember`."""
        last = self.memory.arrays.get(name)
        if last is None:
            last = np.zeros((distance, x.shape[1]), dtype=np.float32)
        moved = np.concatenate([last, x])[len(last) - distance :][: len(x)]
        return np.where(self.since[:, None] >= distance, moved, np.float32(0))

    def remember(self, name: str, x: Floats, count: int = 1) -> None:
        """Keep the newest `count` rows of x (T, C), with those from before where T is less."""
        last = self.memory.arrays.get(name)
        if last is None:
            last = np.zeros((count, x.shape[1]), dtype=np.float32)
        self.memory.arrays[name] = np.concatenate([last, x])[-count:]


class NumpyEngine(Engine):
    """`slots` sequences of a model, one after another."""

    def __init__(
        self, plan: Plan, tensors: Tensors, *, slots: int = 1, context: int | None = None
    ) -> None:
        """Raises `NiblickError` for a plan with a mixer that only the lab has."""
        for layer in plan.layers:
            if layer.mixer not in _MIXERS:
                raise NiblickError(
                    f"no engine has the mixer {layer.mixer!r}; known: {', '.join(_MIXERS)};"
                    " run the model with torch"
                )
        self.name, self.slots, self.columns = "numpy", slots, 256
        self.vocab_size = plan.model.vocab_size
        self._plan, self._context = plan, context or plan.model.context
        self._weights = {name: dequantized(tensor) for name, tensor in tensors.items()}
        self._frequencies = rotary_frequencies(plan.model, self._context)
        self._memory = [_Memory() for _ in range(slots)]
        self._logits = np.zeros((slots, self.vocab_size), dtype=np.float32)
        self._rows = self._logits[:0]
        self.weight_bytes = sum(weight.nbytes for weight in self._weights.values())
        self.state_bytes = slots * plan.decode_state_bytes()

    def reset(self, slot: int, *, at: int = 0) -> None:
        """See `Engine.reset`."""
        self._memory[slot] = _Memory(position=at, first=at)

    def advance(self, slots: Ids, tokens: Ids, wanted: Wanted) -> None:
        """See `Engine.advance`."""
        owners, ids = (np.asarray(each, dtype=np.int64) for each in (slots, tokens))
        cuts = np.flatnonzero(np.diff(owners)) + 1
        rows = []
        for slot, part in zip(owners[[0, *cuts]], np.split(ids, cuts), strict=True):
            hidden = self._hidden(self._call(self._memory[slot], part))
            if wanted != "none":
                logits = self._head(hidden if wanted == "all" else hidden[-1:])
                self._logits[slot] = logits[-1]
                rows.append(logits)
        if rows:
            self._rows = np.concatenate(rows)

    def logits(self, slot: int) -> Floats:
        """See `Engine.logits`."""
        row: Floats = self._logits[slot]
        return row

    def rows(self, count: int) -> Floats:
        """See `Engine.rows`."""
        return self._rows[:count]

    def _call(self, memory: _Memory, tokens: Ints) -> _Call:
        """What is known before the first layer; `memory` moves on behind the tokens."""
        model, count = self._plan.model, np.arange(len(tokens))
        begins = tokens == model.bos_id
        masked = begins if model.document_mask else np.zeros_like(begins)
        origin = np.maximum.accumulate(np.where(masked, count, -memory.since))
        positions = memory.position + count
        within = begins if model.document_attention == "within" else np.zeros_like(begins)
        first = np.maximum.accumulate(np.where(within, positions, memory.first))
        angles = positions[:, None] * self._frequencies
        cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
        return _Call(tokens, count - origin, first, memory, cos, sin)

    def _hidden(self, call: _Call) -> Floats:
        """The final normalised state (T, D)."""
        x = x0 = self._embed(call)
        skips: list[Floats] = []
        for layer in self._plan.layers:
            x = self._layer(layer, x, x0, skips, call)
        memory = call.memory
        memory.position += len(call.tokens)
        memory.since, memory.first = int(call.since[-1]) + 1, int(call.first[-1])
        memory.token = int(call.tokens[-1])
        return rms(x)

    def _head(self, hidden: Floats) -> Floats:
        """Logits c tanh(z / c) of z = hidden W^T."""
        name = "tok_emb" if self._plan.model.tied else "lm_head"
        logits = self._linear(name, hidden)
        cap = self._plan.model.softcap
        return logits if cap is None else np.float32(cap) * np.tanh(logits / np.float32(cap))

    def _linear(self, name: str, x: Floats) -> Floats:
        """x W^T."""
        found: Floats = x @ self._weights[f"{name}.weight"].T
        return found

    def _embed(self, call: _Call) -> Floats:
        """smear(rms(token embedding + hashed bigram embedding)); also the value embedding."""
        model, weights = self._plan.model, self._weights
        x = weights["tok_emb.weight"][call.tokens]
        if model.bigram.enabled:
            earlier = np.concatenate([[call.memory.token], call.tokens[:-1]])
            earlier = np.where(call.since > 0, earlier, NO_TOKEN).astype(np.int32)
            mixed = np.int32(36313) * call.tokens.astype(np.int32) ^ np.int32(27191) * earlier
            last = model.bigram.buckets - 1
            index = np.where(earlier == NO_TOKEN, last, mixed.astype(np.int64) % last)
            pairs = weights["bigram.embed.weight"][index]
            if model.bigram.projection:
                pairs = self._linear("bigram.proj", pairs)
            x = x + weights["bigram.scale"] * pairs
        x = rms(x)
        if model.smear.enabled:
            gate, last_x = sigmoid(weights["smear.gate"]), call.before("smear", x)
            call.remember("smear", x)
            x = (1 - gate) * x + gate * last_x
        if model.value_embedding.enabled:
            call.values = self._linear("ve_proj", weights["ve_embed.weight"][call.tokens])
        return x

    def _layer(
        self, layer: VirtualLayer, x: Floats, x0: Floats, skips: list[Floats], call: _Call
    ) -> Floats:
        """x = mix(x, x0); x += a * mixer(s * rms(x)); x += b * mlp(s * rms(x)); the sidecar."""
        model, weights, scale = self._plan.model, self._weights, np.float32(layer.scale)
        if layer.pop is not None:
            x = x + weights["skip_weights"][layer.pop] * skips.pop()
        if model.residual_mix.enabled:
            mix = weights[f"{layer.scalars}.resid_mix"]
            x = mix[0] * x + mix[1] * x0
        mixed = _MIXERS[layer.mixer](self, layer, scale * rms(x), call)
        x = x + weights[f"{layer.scalars}.attn_scale"] * mixed
        inner = self._linear(f"{layer.block}.mlp.fc", scale * rms(x))
        leaky = model.mlp.activation == "leaky-relu-squared"
        inner = np.where(inner > 0, inner, np.float32(model.mlp.slope if leaky else 0) * inner) ** 2
        outer = self._linear(f"{layer.block}.mlp.proj", inner)
        x = x + weights[f"{layer.scalars}.mlp_scale"] * outer
        if layer.sidecar_site is not None:
            x = self._sidecar(layer.sidecar_site, x, call)
        if layer.push:
            skips.append(x)
        return x

    def _token_shift(self, layer: VirtualLayer, u: Floats, call: _Call) -> Floats:
        """sigmoid(W_r r) * (W_v relu(W_k k)^2), r and k between u and the u before."""
        prefix, name = f"{layer.block}.mixer", f"layers.{layer.index}.shift"
        before = call.before(name, u)
        call.remember(name, u)
        r, k = (
            before + sigmoid(self._weights[f"{prefix}.{mix}"]) * (u - before)
            for mix in ("mix_r", "mix_k")
        )
        inner = np.maximum(self._linear(f"{prefix}.W_k", k), 0) ** 2
        return sigmoid(self._linear(f"{prefix}.W_r", r)) * self._linear(f"{prefix}.W_v", inner)

    def _attention(self, layer: VirtualLayer, u: Floats, call: _Call) -> Floats:
        """Grouped-query attention over the newest `span` positions, with its optional parts."""
        model, weights, prefix = self._plan.model, self._weights, f"{layer.block}.attn"
        options, width, count = model.attention, model.head_dim, len(u)
        q, k, v = (self._linear(f"{prefix}.{name}", u) for name in ("c_q", "c_k", "c_v"))
        if layer.value_embedding and call.values is not None:
            v = v + weights[f"ve_scales.{layer.index}"] * call.values
        if options.kv_shift:
            k, v = (
                self._shifted(f"layers.{layer.index}.{name}", x, f"{prefix}.{name}_mix", call)
                for name, x in (("k_shift", k), ("v_shift", v))
            )
        heads = (x.reshape(count, -1, width).swapaxes(0, 1) for x in (q, k, v))
        q, k, v = heads  # (H or G, T, E)
        q_gain = weights.get(f"{layer.gains}.q_gain")
        q = self._rotated(q, None if options.q_gain is None else q_gain, call)
        k = self._rotated(k, weights[f"{layer.gains}.k_gain"] if options.k_gain else None, call)
        y = self._attend(layer, q, k, v, call)
        v = np.repeat(v, len(q) // len(v), axis=0)
        if options.local_value:
            y = y + weights[f"{prefix}.local_v_mix"][:, None, None] * v
        if layer.xsa:
            unit = v / np.maximum(np.linalg.norm(v, axis=2, keepdims=True), 1e-12)
            y = y - (y * unit).sum(axis=2, keepdims=True) * unit
        return self._linear(f"{prefix}.proj", y.swapaxes(0, 1).reshape(count, -1))

    def _shifted(self, name: str, x: Floats, mix: str, call: _Call) -> Floats:
        """x + mix * the x before, one mix per key/value head."""
        before = call.before(name, x)
        call.remember(name, x)
        factors: Floats = np.repeat(self._weights[mix], self._plan.model.head_dim)
        return x + factors * before

    def _rotated(self, x: Floats, gain: Floats | None, call: _Call) -> Floats:
        """gain * rotate(rms(x)) of queries or keys (heads, T, E)."""
        x = rms(x) if self._plan.model.attention.qk_norm else x
        half = call.cos.shape[1]
        a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
        turned = (a * call.cos + b * call.sin, b * call.cos - a * call.sin, rest)
        x = np.concatenate(turned, axis=2)
        return x if gain is None else gain[:, None, None] * x

    def _attend(self, layer: VirtualLayer, q: Floats, k: Floats, v: Floats, call: _Call) -> Floats:
        """softmax(q k^T / sqrt(E)) v over the ring and the call's own positions; (H, T, E)."""
        span = self._context if layer.mixer == "full" else layer.span
        count, arrays = q.shape[1], call.memory.arrays
        for name, x in (("keys", k), ("values", v)):
            ring = arrays.get(f"layers.{layer.index}.{name}", x[:, :0])
            arrays[f"layers.{layer.index}.{name}"] = np.concatenate([ring, x], axis=1)
        k, v = (arrays[f"layers.{layer.index}.{name}"] for name in ("keys", "values"))
        end = call.memory.position + count
        of_query, of_key = np.arange(end - count, end)[:, None], np.arange(end - k.shape[1], end)
        seen = (of_key <= of_query) & (of_key > of_query - span) & (of_key >= call.first[:, None])
        grouped = q.reshape(len(k), -1, *q.shape[1:])  # (G, H / G, T, E)
        scores = grouped @ k[:, None].swapaxes(2, 3) / np.float32(np.sqrt(q.shape[2]))
        scores = np.where(seen, scores, np.float32(-np.inf))
        weights = np.exp(scores - scores.max(axis=3, keepdims=True))
        weights /= weights.sum(axis=3, keepdims=True)
        for name in ("keys", "values"):
            arrays[f"layers.{layer.index}.{name}"] = arrays[f"layers.{layer.index}.{name}"][
                :, -span:
            ]
        mixed: Floats = (weights @ v[:, None]).reshape(q.shape)
        return mixed

    def _sidecar(self, site: int, x: Floats, call: _Call) -> Floats:
        """x + scale * W_p(silu(W_g n + gate) * conv(W_v n)), n = rms(x)."""
        weights, prefix, name = self._weights, "shared_sparse", f"sidecar.{site}"
        n = rms(x)
        values, gate = (self._linear(f"{prefix}.{part}", n) for part in ("value", "gate"))
        gate = gate + weights[f"{prefix}.site_gate.weight"][site]
        kernel = weights[f"{prefix}.local.weight"][:, 0]  # (S, K)
        taps = kernel.shape[1] - 1
        local = values * kernel[:, taps]
        for distance in range(1, taps + 1):
            earlier = call.before(name, values, distance)
            local = local + earlier * kernel[:, taps - distance]
        call.remember(name, values, taps)
        mixed = self._linear(f"{prefix}.proj", gate * sigmoid(gate) * local)
        found: Floats = x + weights["shared_sparse_scale"][site] * mixed
        return found


_MIXERS = {
    "token-shift": NumpyEngine._token_shift,
    "window": NumpyEngine._attention,
    "full": NumpyEngine._attention,
}
