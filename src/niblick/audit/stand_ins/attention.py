"""Flash-attention's functions in plain PyTorch: same arguments and shapes, any device,
differentiable.

Shapes are flash-attention's own: q (B, T, H, E), k and v (B, S, G, E) with H a multiple of G; the
packed form (variable length) has (tokens, H, E) with cumulative lengths. Masks align to the bottom
right, as there.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def flash_attn_func(q: Tensor, k: Tensor, v: Tensor, *arguments: Any, **options: Any) -> Any:
    """softmax(q k^T * scale, masked) v; options `causal`, `window_size`, `softmax_scale`,
    `softcap`.
    """
    if arguments and isinstance(arguments[0], float) and "dropout_p" not in options:
        arguments = arguments[1:]  # version 2 has the dropout rate in front of the scale
    scale = options.get("softmax_scale") or (arguments[0] if arguments else None)
    causal = bool(options.get("causal", arguments[1] if len(arguments) > 1 else False))
    window = options.get("window_size") or (-1, -1)
    out = _attend(q, k, v, scale, causal, tuple(window), float(options.get("softcap") or 0.0))
    if options.get("return_attn_probs") or options.get("return_softmax_lse"):
        return out, None, None
    return out


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None,
    causal: bool,
    window: tuple[int, ...],
    softcap: float,
) -> Tensor:
    import torch

    length, keys = q.size(-3), k.size(-3)
    repeat = q.size(-2) // k.size(-2)
    k = k.repeat_interleave(repeat, dim=-2).transpose(-3, -2).to(q.dtype)  # (B, H, S, E)
    v = v.repeat_interleave(repeat, dim=-2).transpose(-3, -2).to(q.dtype)
    weights = (q.transpose(-3, -2) @ k.transpose(-2, -1)) * (scale or 1.0 / math.sqrt(q.size(-1)))
    if softcap:
        weights = softcap * torch.tanh(weights / softcap)
    ahead = torch.arange(keys)[None, :] - torch.arange(length)[:, None] - (keys - length)  # (T, S)
    left, right = window[0], 0 if causal else window[1]
    hidden = torch.zeros_like(ahead, dtype=torch.bool)
    if right >= 0:
        hidden |= ahead > right
    if left >= 0:
        hidden |= ahead < -left
    weights = weights.float().masked_fill(hidden.to(weights.device), float("-inf"))
    return (torch.softmax(weights, -1).to(q.dtype) @ v).transpose(-3, -2)


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    *_: Any,
    **options: Any,
) -> Tensor:
    """`flash_attn_func` over packed sequences (tokens, H, E) with cumulative lengths (sequences +
    1,).
    """
    import torch

    starts, key_starts = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
    kept = {
        name: options[name]
        for name in ("causal", "window_size", "softmax_scale", "softcap")
        if name in options
    }
    pieces = [
        flash_attn_func(q[None, a:b], k[None, c:d], v[None, c:d], **kept)[0]
        for a, b, c, d in zip(starts, starts[1:], key_starts, key_starts[1:], strict=False)
        if b > a
    ]
    done = sum(piece.size(0) for piece in pieces)
    rest = q.new_zeros(q.size(0) - done, q.size(1), v.size(-1))
    return torch.cat([*pieces, rest])


def flash_attn_qkvpacked_func(qkv: Tensor, *arguments: Any, **options: Any) -> Any:
    """`flash_attn_func` of q, k and v stacked as (B, T, 3, H, E)."""
    q, k, v = qkv.unbind(-3)
    return flash_attn_func(q, k, v, *arguments, **options)


def flash_attn_kvpacked_func(q: Tensor, kv: Tensor, *arguments: Any, **options: Any) -> Any:
    """`flash_attn_func` of k and v stacked as (B, S, 2, G, E)."""
    k, v = kv.unbind(-3)
    return flash_attn_func(q, k, v, *arguments, **options)


FUNCTIONS = {
    "flash_attn_func": flash_attn_func,
    "flash_attn_varlen_func": flash_attn_varlen_func,
    "flash_attn_qkvpacked_func": flash_attn_qkvpacked_func,
    "flash_attn_kvpacked_func": flash_attn_kvpacked_func,
}
