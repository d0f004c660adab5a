"""The three published models written once more, slowly: float64 NumPy, one position and one head at
a time.

Takes a model section as plain values (what TOML holds, defaults filled in) and weights by published
name, and shares no code with the package: its own expansion of the stack, its own masks, its own
rotation. `prev` of a position is None where nothing precedes it: at the start, and at a BOS when
documents are masked.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray
EPS = float(np.finfo(np.float32).eps)  # the default eps of an RMS norm over float32


@dataclass
class Visit:
    """One virtual layer: weight block, mixer, window (None: the whole context), prefix of its
    scalars.
    """

    block: str
    mixer: str
    window: int | None
    scalars: str


@dataclass
class Call:
    """The sequence being read: tokens, where each position's predecessor and document lie, and the
    settings.
    """

    model: dict[str, Any]
    weights: dict[str, Array]
    tokens: list[int]
    context: int

    def prev(self, t: int) -> int | None:
        if t == 0 or (self.model["document_mask"] and self.tokens[t] == self.model["bos_id"]):
            return None
        return t - 1

    def back(self, t: int, steps: int) -> int | None:
        position: int | None = t
        for _ in range(steps):
            position = None if position is None else self.prev(position)
        return position

    def first_visible(self, t: int, window: int | None) -> int:
        first = t - window if window is not None else t - self.context + 1
        if self.model["document_attention"] == "within":
            starts = [j for j in range(t + 1) if self.tokens[j] == self.model["bos_id"]]
            first = max(first, starts[-1] if starts else 0)
        return max(first, 0)


def logits(
    model: dict[str, Any], weights: dict[str, Array], tokens: list[int], context: int | None = None
) -> Array:
    """(T, V) logits of one sequence."""
    call = Call(model, weights, list(tokens), context or max(len(tokens), model["context"]))
    visits = expand(model)
    x0 = embedding(call)
    x = x0.copy()
    skips: list[Array] = []
    half = len(visits) // 2
    first_pop = half if model["skips"]["pop"] == "early" else len(visits) - half
    for i, visit in enumerate(visits):
        if model["skips"]["enabled"] and first_pop <= i < first_pop + half:
            x = x + weights["skip_weights"][i - first_pop] * skips.pop()
        x = layer(call, visit, i, len(visits), x, x0)
        if model["sidecar"]["enabled"] and i in model["sidecar"]["layers"]:
            x = sidecar(call, x, sorted(model["sidecar"]["layers"]).index(i))
        if model["skips"]["enabled"] and i < half:
            skips.append(x)
    head = weights["tok_emb.weight"] if model["tied"] else weights["lm_head.weight"]
    z = rms(x) @ head.T
    cap = model["softcap"]
    return z if cap is None else cap * np.tanh(z / cap)


def expand(model: dict[str, Any]) -> list[Visit]:
    """Every segment's blocks in order, as often as it loops."""
    visits: list[Visit] = []
    for segment in model["stack"]:
        blocks: list[tuple[str, int | None]] = []
        for text in segment["layers"]:
            name, window, count = re.match(r"([a-z-]+)(?::(\d+))?(?:\*(\d+))?$", text).groups()
            blocks += [(name, int(window) if window else None)] * int(count or 1)
        for _ in range(segment["loops"]):
            for j, (mixer, window) in enumerate(blocks):
                block = f"{segment['name']}.{j}"
                scalars = f"vlayers.{len(visits)}" if model["scalars"] == "virtual" else block
                visits.append(Visit(block, mixer, window, scalars))
    return visits


def rms(x: Array) -> Array:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + EPS)


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def int32(value: int) -> int:
    return (value + 2**31) % 2**32 - 2**31


def bigram_bucket(token: int, before: int | None, buckets: int) -> int:
    if before is None:
        return buckets - 1
    return (int32(36313 * token) ^ int32(27191 * before)) % (buckets - 1)


def embedding(call: Call) -> Array:
    """x0 = smear(rms(tok_emb + bigram)), (T, D)."""
    w, model = call.weights, call.model
    rows = []
    for t, token in enumerate(call.tokens):
        e = w["tok_emb.weight"][token].copy()
        if model["bigram"]["enabled"]:
            p = call.prev(t)
            bucket = bigram_bucket(
                token, None if p is None else call.tokens[p], model["bigram"]["buckets"]
            )
            row = w["bigram.embed.weight"][bucket]
            if model["bigram"]["projection"]:
                row = w["bigram.proj.weight"] @ row
            e += w["bigram.scale"] * row
        rows.append(rms(e))
    if not model["smear"]["enabled"]:
        return np.array(rows)
    g = sigmoid(w["smear.gate"])
    return np.array([(1 - g) * rows[t] + g * before(call, rows, t) for t in range(len(rows))])


def before(call: Call, rows: Any, t: int) -> Array:
    """The row of the previous position, zeros where there is none."""
    p = call.prev(t)
    return np.zeros_like(rows[t]) if p is None else rows[p]


def layer(call: Call, visit: Visit, index: int, layers: int, x: Array, x0: Array) -> Array:
    w, model = call.weights, call.model
    if model["residual_mix"]["enabled"]:
        m = w[f"{visit.scalars}.resid_mix"]
        x = m[0] * x + m[1] * x0
    attends = visit.mixer in ("window", "full")
    factor = 1 / math.sqrt(index + 1) if attends and model["depth_scale"] else 1.0
    u = rms(x) * factor
    mixed = attention(call, visit, index, layers, u) if attends else token_shift(call, visit, u)
    y = x + w[f"{visit.scalars}.attn_scale"] * mixed
    return y + w[f"{visit.scalars}.mlp_scale"] * mlp(call, visit, rms(y) * factor)


def token_shift(call: Call, visit: Visit, u: Array) -> Array:
    w = {name: call.weights[f"{visit.block}.mixer.{name}"] for name in ("mix_r", "mix_k")}
    maps = {
        name: call.weights[f"{visit.block}.mixer.{name}.weight"] for name in ("W_r", "W_k", "W_v")
    }
    s_r, s_k = sigmoid(w["mix_r"]), sigmoid(w["mix_k"])
    out = []
    for t in range(len(u)):
        p = before(call, u, t)
        r, k = s_r * u[t] + (1 - s_r) * p, s_k * u[t] + (1 - s_k) * p
        out.append(sigmoid(maps["W_r"] @ r) * (maps["W_v"] @ np.maximum(maps["W_k"] @ k, 0) ** 2))
    return np.array(out)


def mlp(call: Call, visit: Visit, u: Array) -> Array:
    options = call.model["mlp"]
    slope = options["slope"] if options["activation"] == "leaky-relu-squared" else 0.0
    hidden = u @ call.weights[f"{visit.block}.mlp.fc.weight"].T
    return (
        np.where(hidden > 0, hidden, slope * hidden) ** 2
        @ call.weights[f"{visit.block}.mlp.proj.weight"].T
    )


def rotary_width(model: dict[str, Any], head: int) -> int:
    dims = model["attention"]["rope"]["dims"]
    if dims == "full":
        return head
    if dims == "adaptive":
        return head if head <= 32 else 2 * int(0.75 * head / 2)
    return dims


def rotate(call: Call, head: Array, t: int) -> Array:
    """Rotate the first R of E dims as two halves."""
    rope, width = call.model["attention"]["rope"], rotary_width(call.model, len(head))
    count = {"head": len(head), "rotary": width}.get(rope["frequency_dims"], rope["frequency_dims"])
    base = rope["base"]
    if rope["train_length"] is not None and call.context > rope["train_length"]:
        base *= (call.context / rope["train_length"]) ** (width / (width - 2))
    out = head.copy()
    for j in range(width // 2):
        angle = t * base ** (-2 * j / count)
        a, b = head[j], head[j + width // 2]
        out[j] = a * math.cos(angle) + b * math.sin(angle)
        out[j + width // 2] = -a * math.sin(angle) + b * math.cos(angle)
    return out


def keys_values(call: Call, visit: Visit, index: int, u: Array) -> tuple[Array, Array]:
    """k, v (T, G, E): value embedding first, then both mixed with the position before."""
    w, options, prefix = call.weights, call.model["attention"], f"{visit.block}.attn"
    k, v = u @ w[f"{prefix}.c_k.weight"].T, u @ w[f"{prefix}.c_v.weight"].T
    extra = call.model["value_embedding"]
    if extra["enabled"] and index in extra["layers"]:
        for t, token in enumerate(call.tokens):
            v[t] = v[t] + w[f"ve_scales.{index}"][0] * (
                w["ve_proj.weight"] @ w["ve_embed.weight"][token]
            )
    k, v = (x.reshape(len(u), options["kv_heads"], -1) for x in (k, v))
    if options["kv_shift"]:
        mixes = (w[f"{prefix}.k_shift_mix"][:, None], w[f"{prefix}.v_shift_mix"][:, None])
        k, v = (
            np.array([x[t] + mix * before(call, x, t) for t in range(len(u))])
            for x, mix in zip((k, v), mixes, strict=True)
        )
    return k, v


def attention(call: Call, visit: Visit, index: int, layers: int, u: Array) -> Array:
    w, options, prefix = call.weights, call.model["attention"], f"{visit.block}.attn"
    gains = visit.scalars if visit.scalars != visit.block else prefix
    length, heads, groups = len(u), options["heads"], options["kv_heads"]
    q = (u @ w[f"{prefix}.c_q.weight"].T).reshape(length, heads, -1)
    k, v = keys_values(call, visit, index, u)
    if options["qk_norm"]:
        q, k = rms(q), rms(k)
    q = np.array([[rotate(call, q[t, h], t) for h in range(heads)] for t in range(length)])
    k = np.array([[rotate(call, k[t, g], t) for g in range(groups)] for t in range(length)])
    if options["q_gain"] is not None:
        q = q * w[f"{gains}.q_gain"][:, None]
    if options["k_gain"]:
        k = k * w[f"{gains}.k_gain"][:, None]
    listed = options["xsa_layers"]
    exclusive = index in listed if listed is not None else index >= layers - options["xsa_last"]
    out = np.zeros_like(q)
    for t in range(length):
        for h in range(heads):
            out[t, h] = one_head(call, visit, t, h, q, k, v, exclusive)
    return out.reshape(length, -1) @ w[f"{prefix}.proj.weight"].T


def one_head(
    call: Call, visit: Visit, t: int, h: int, q: Array, k: Array, v: Array, exclusive: bool
) -> Array:
    """Softmax attention of one head at one position, its local value, and what XSA takes away."""
    g = h // (q.shape[1] // k.shape[1])
    seen = range(call.first_visible(t, visit.window), t + 1)
    scores = np.array([q[t, h] @ k[j, g] for j in seen]) / math.sqrt(q.shape[2])
    p = np.exp(scores - scores.max())
    y = sum(weight * v[j, g] for weight, j in zip(p / p.sum(), seen, strict=True))
    if call.model["attention"]["local_value"]:
        y = y + call.weights[f"{visit.block}.attn.local_v_mix"][h] * v[t, g]
    if exclusive:
        unit = v[t, g] / max(math.sqrt(v[t, g] @ v[t, g]), 1e-12)
        y = y - (y @ unit) * unit
    return y


def sidecar(call: Call, x: Array, site: int) -> Array:
    w, n = call.weights, rms(x)
    gate = n @ w["shared_sparse.gate.weight"].T + w["shared_sparse.site_gate.weight"][site]
    values, taps = n @ w["shared_sparse.value.weight"].T, w["shared_sparse.local.weight"][:, 0]
    out = x.copy()
    for t in range(len(x)):
        local = np.zeros(values.shape[1])
        for steps in range(taps.shape[1]):
            p = call.back(t, steps)
            if p is not None:
                local += taps[:, taps.shape[1] - 1 - steps] * values[p]
        mixed = w["shared_sparse.proj.weight"] @ (gate[t] * sigmoid(gate[t]) * local)
        out[t] += w["shared_sparse_scale"][site] * mixed
    return out
