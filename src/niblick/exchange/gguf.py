"""A model as a GGUF file for llama.cpp, where its parts are those of an architecture there.

The nearest is "arcee": RMS norms, grouped-query attention with rotary embedding over the whole
context, and W_2 relu(W_1 u)^2. Scales, gains, the norm of the embedding and the direction of the
rotation are folded into the weights. Whatever else a model has is named in the refusal. No torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from niblick.codecs.quantized import QuantizedTensor
from niblick.components import MLP
from niblick.components.attention import rotary_base
from niblick.components.base import VirtualLayer
from niblick.errors import NiblickError
from niblick.extras import needs
from niblick.facade import Model
from niblick.plan import Plan
from niblick.recipe.model import ModelRecipe
from niblick.text import spmodel
from niblick.text.spmodel import SPACE
from niblick.text.tokenizer import BytesTokenizer, SentencePieceTokenizer, Tokenizer

Floats = NDArray[np.float32]
_EPS = float(np.finfo(np.float32).eps)
_ARCHITECTURE, _STILL = "arcee", 1e30


def unmapped(plan: Plan) -> list[str]:
    """The parts of a model that llama.cpp has no place for, as recipe keys."""
    model = plan.model
    attention = model.attention
    parts = {
        f"members: an ensemble of {model.members}": model.members > 1,
        "stack: " + ", ".join(sorted({x.mixer for x in plan.layers} - {"full"})): any(
            layer.mixer != "full" for layer in plan.layers
        ),
        "mlp.activation: leaky-relu-squared": MLP.slope(model) != 0,
        "softcap": model.softcap is not None,
        "attention.qk_norm": attention.qk_norm,
        "attention.kv_shift": attention.kv_shift,
        "attention.local_value": attention.local_value,
        "attention.xsa_last": any(layer.xsa for layer in plan.layers),
        f"attention.heads: an odd head width {model.head_dim}": model.head_dim % 2 == 1,
        "document_attention: within": model.document_attention == "within",
        **{name: getattr(model, name).enabled for name in _SECTIONS},
    }
    return [name for name, there in parts.items() if there]


_SECTIONS = ("bigram", "smear", "residual_mix", "skips", "value_embedding", "sidecar")


def export_gguf(model: Model, out: Path) -> int:
    """Write `model` to the file `out` in float32; its size in bytes.

    Raises `NiblickError` that names the parts llama.cpp does not have.
    """
    lost = unmapped(model.plan)
    if lost:
        raise NiblickError(
            f"llama.cpp has no place for these parts of the model: {', '.join(lost)}"
        )
    with needs("export to gguf", "gguf"):
        import gguf
    pieces = _pieces(model.tokenizer)
    writer = gguf.GGUFWriter(out, _ARCHITECTURE)
    _settings(writer, model)
    writer.add_token_list([text for text, _, _ in pieces])
    writer.add_token_scores([score for _, score, _ in pieces])
    writer.add_token_types([kind for _, _, kind in pieces])
    for name, tensor in _tensors(model).items():
        writer.add_tensor(name, np.ascontiguousarray(tensor, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out.stat().st_size


def _settings(writer: Any, model: Model) -> None:
    sizes, plan = model.plan.model, model.plan
    writer.add_name(model.recipe.name)
    writer.add_context_length(sizes.context)
    writer.add_embedding_length(sizes.dim)
    writer.add_block_count(len(plan.layers))
    writer.add_feed_forward_length(sizes.mlp_dim)
    writer.add_head_count(sizes.attention.heads)
    writer.add_head_count_kv(sizes.attention.kv_heads)
    writer.add_rope_dimension_count(sizes.head_dim)
    writer.add_rope_freq_base(rotary_base(sizes, sizes.context))
    writer.add_layer_norm_rms_eps(_EPS)
    writer.add_vocab_size(sizes.vocab_size)
    own = model.tokenizer
    spaced = isinstance(own, SentencePieceTokenizer) and own.model.dummy_prefix
    writer.add_tokenizer_model("llama")
    writer.add_bos_token_id(model.tokenizer.bos_id)
    writer.add_eos_token_id(model.tokenizer.bos_id)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(spaced)


def _pieces(tokenizer: Tokenizer) -> list[tuple[str, float, int]]:
    """Text, score and kind of each token; a space is U+2581, as llama.cpp writes it."""
    if isinstance(tokenizer, BytesTokenizer):
        special = [("<pad>", 0.0, 3), ("<s>", 0.0, 3), ("</s>", 0.0, 3), ("<unk>", 0.0, 2)]
        bytes_ = [(name, 0.0, spmodel.BYTE) for name in spmodel.BYTE_PIECES]
        bytes_[ord(" ")] = (SPACE, 0.0, spmodel.NORMAL)
        return special + bytes_
    if isinstance(tokenizer, SentencePieceTokenizer):
        model = tokenizer.model
        if model.kind_name == "bpe" and model.lossless:
            return [(p.text, p.score, p.kind) for p in model.pieces]
    raise NiblickError(
        f"the tokenizer {tokenizer.name!r} has no exact form in llama.cpp; bytes and a lossless BPE"
        " have"
    )


def _tensors(model: Model) -> dict[str, Floats]:
    """The weights by llama.cpp's names, with everything folded in; looped blocks once per visit."""
    weights = {
        name: t.dequantize() if isinstance(t, QuantizedTensor) else np.asarray(t, np.float32)
        for name, t in model.tensors.items()
    }
    table, sizes = weights["tok_emb.weight"], model.plan.model
    norm = np.sqrt((table.astype(np.float64) ** 2).mean(axis=1, keepdims=True) + _EPS)
    found = {
        "token_embd.weight": table / norm,
        "output_norm.weight": np.ones(sizes.dim, np.float32),
        "output.weight": table if sizes.tied else weights["lm_head.weight"],
    }
    found["rope_freqs.weight"] = _slowdown(sizes)
    for layer in model.plan.layers:
        parts = _layer(weights, layer, sizes)
        found |= {f"blk.{layer.index}.{name}.weight": part for name, part in parts.items()}
    return found


def _slowdown(sizes: ModelRecipe) -> Floats:
    """What llama.cpp divides each pair's angle by, (E/2,): there, all of a head turns.

    Beyond the rotated dimensions it is so large that nothing turns.
    """
    pair, base = np.arange(sizes.head_dim // 2), rotary_base(sizes, sizes.context)
    ours = base ** (-2.0 * pair / sizes.rope_frequency_dims)
    found = base ** (-2.0 * pair / sizes.head_dim) / ours
    found[sizes.rope_dims // 2 :] = _STILL
    return found.astype(np.float32)


def _layer(weights: dict[str, Floats], layer: VirtualLayer, sizes: ModelRecipe) -> dict[str, Any]:
    block, ones = layer.block, np.full(sizes.dim, layer.scale, np.float32)
    attn_scale = weights[f"{layer.scalars}.attn_scale"][:, None]
    mlp_scale = weights[f"{layer.scalars}.mlp_scale"][:, None]
    q_gain, k_gain = (weights.get(f"{layer.gains}.{name}") for name in ("q_gain", "k_gain"))
    return {
        "attn_norm": ones,
        "attn_q": _turned(weights[f"{block}.attn.c_q.weight"], q_gain, sizes),
        "attn_k": _turned(weights[f"{block}.attn.c_k.weight"], k_gain, sizes),
        "attn_v": weights[f"{block}.attn.c_v.weight"],
        "attn_output": attn_scale * weights[f"{block}.attn.proj.weight"],
        "ffn_norm": ones,
        "ffn_up": weights[f"{block}.mlp.fc.weight"],
        "ffn_down": mlp_scale * weights[f"{block}.mlp.proj.weight"],
    }


def _turned(weight: Floats, gain: Floats | None, sizes: ModelRecipe) -> Floats:
    """Rows of a head so that pairs stand side by side and turn the other way, times its gain."""
    heads = weight.reshape(-1, sizes.head_dim, weight.shape[1]).copy()
    half = sizes.rope_dims // 2
    a, b = heads[:, :half].copy(), heads[:, half : 2 * half].copy()
    heads[:, 0 : 2 * half : 2], heads[:, 1 : 2 * half : 2] = a, -b
    if gain is not None:
        heads *= gain[:, None, None]
    return heads.reshape(weight.shape)
