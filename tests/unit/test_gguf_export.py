"""What llama.cpp is given computes our logits; what it has no place for is named."""

from __future__ import annotations

import numpy as np
import pytest

from leaving import LLAMA, saved
from niblick.errors import NiblickError
from niblick.exchange.gguf import _tensors, export_gguf, unmapped
from niblick.plan import make_plan
from niblick.recipe import load_recipe


def rms(x):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + np.finfo(np.float32).eps)


def turned(x, base, factors):
    """llama.cpp's rotation of neighbouring pairs, x (T, H, E), each slowed down by its factor."""
    dims = x.shape[2]
    pace = base ** (-2.0 * np.arange(dims // 2) / dims) / factors
    angles = np.arange(len(x))[:, None] * pace
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    out, a, b = x.copy(), x[..., 0:dims:2], x[..., 1:dims:2]
    out[..., 0:dims:2], out[..., 1:dims:2] = a * cos - b * sin, a * sin + b * cos
    return out


def arcee(weights, tokens, *, heads, groups, base, layers):
    """Logits (T, V) of llama.cpp's architecture of that name."""
    x = weights["token_embd.weight"][tokens].astype(np.float64)
    length, seen = len(tokens), np.tril(np.ones((len(tokens), len(tokens)), bool))
    for i in range(layers):
        w = {k.split(".")[2]: v for k, v in weights.items() if k.startswith(f"blk.{i}.")}
        u = rms(x) * w["attn_norm"]
        q, k, v = ((u @ w[f"attn_{n}"].T).reshape(length, -1, x.shape[1] // heads) for n in "qkv")
        q, k = (turned(each, base, weights["rope_freqs.weight"]) for each in (q, k))
        k, v = (t.repeat(heads // groups, axis=1) for t in (k, v))
        scores = np.einsum("qhe,khe->hqk", q, k) / np.sqrt(q.shape[2])
        weight = np.exp(np.where(seen, scores, -np.inf) - scores.max(-1, keepdims=True))
        y = np.einsum("hqk,khe->qhe", weight / weight.sum(-1, keepdims=True), v)
        x = x + y.reshape(length, -1) @ w["attn_output"].T
        u = rms(x) * w["ffn_norm"]
        x = x + np.maximum(u @ w["ffn_up"].T, 0) ** 2 @ w["ffn_down"].T
    return (rms(x) * weights["output_norm.weight"]) @ weights["output.weight"].T


@pytest.mark.parametrize("dims", [0, 8, 16])
@pytest.mark.parametrize("paced", ["head", "rotary"])
def test_the_folded_weights_compute_our_logits(dims, paced, tmp_path):
    rope = [f"model.attention.rope.dims={dims}", f"model.attention.rope.frequency_dims={paced}"]
    model = saved(tmp_path, "token-shift", *LLAMA, *rope)
    tokens = np.random.default_rng(1).integers(4, 260, 24)
    base = model.recipe.model.attention.rope.base
    found = arcee(_tensors(model), tokens, heads=2, groups=1, base=base, layers=3)
    assert np.abs(found - model.logits(tokens)).max() < 1e-4


@pytest.mark.parametrize("family", ["token-shift", "depth-recurrent", "sidecar", "pocket"])
def test_the_published_models_are_refused_by_the_names_of_their_parts(family, tmp_path):
    lost = unmapped(make_plan(load_recipe(family).model))
    assert {"softcap", "attention.qk_norm"} <= set(lost)
    if family != "pocket":
        with pytest.raises(NiblickError, match=r"softcap, attention\.qk_norm"):
            export_gguf(saved(tmp_path, family), tmp_path / "model.gguf")
        assert not (tmp_path / "model.gguf").exists()
