"""What components compute with, in plain torch: the readable reference of the kernels.

Norm, dropout, rotation, and the shifts behind smear, token shift, k/v shift and the sidecar's
filter. With document masking everything before a BOS counts as absent: at a BOS the shifted value
is zero.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor, cat
from torch.nn import functional as F

Rotation = tuple[Tensor, Tensor]  # cos and sin (T, R/2), float32


def rms(x: Tensor) -> Tensor:
    """RMS normalisation over the last axis, no weight, PyTorch's default eps."""
    return F.rms_norm(x, (x.shape[-1],))


def dropped(rows: Tensor, factor: Tensor | None) -> Tensor:
    """The rows (B, T, E) of a table as dropout leaves them: all of them outside training."""
    return rows if factor is None else rows * factor.to(rows.dtype)


def nll(logits: Tensor, targets: Tensor) -> Tensor:
    """-ln p(target) in nats, float32 (B, T), for logits (B, T, V) and targets (B, T)."""
    flat = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none")
    return flat.view(targets.shape)


def previous(x: Tensor, last: Tensor | None, boundary: Tensor | None) -> Tensor:
    """prev(x) for x (B, T, C): `last` (B, C) stands before the first position, zeros if None.

    `boundary` (B, T) is true where a document begins (None: no masking).
    """
    before = (
        x.new_zeros(x.shape[0], 1, x.shape[2]) if last is None else last.unsqueeze(1).to(x.dtype)
    )
    shifted = cat([before, x[:, :-1]], dim=1)
    return shifted if boundary is None else shifted.masked_fill(boundary.unsqueeze(-1), 0)


def filter_taps(
    x: Tensor, last: Tensor | None, boundary: Tensor | None, width: int
) -> list[Tensor]:
    """x (B, T, C) shifted by width-1, ..., 1, 0 positions, cut off at the newest document boundary.

    `last` (B, width-1, C) holds the positions before the first; zeros if None.
    """
    before = x.new_zeros(x.shape[0], width - 1, x.shape[2]) if last is None else last.to(x.dtype)
    whole, length = cat([before, x], dim=1), x.shape[1]
    taps = [x]
    hidden = None
    for distance in range(1, width):
        tap = whole[:, width - 1 - distance : width - 1 - distance + length]
        if boundary is not None:
            reach = _delayed(boundary, distance - 1)
            hidden = reach if hidden is None else hidden | reach
            tap = tap.masked_fill(hidden.unsqueeze(-1), 0)
        taps.append(tap)
    return taps[::-1]


def last_taps(x: Tensor, last: Tensor | None, boundary: Tensor | None, count: int) -> Tensor:
    """The newest `count` positions (B, count, C), zeroed where a later one begins a document."""
    before = x.new_zeros(x.shape[0], count, x.shape[2]) if last is None else last.to(x.dtype)
    kept = cat([before, x], dim=1)[:, -count:]
    if boundary is None:
        return kept
    flags = cat([boundary.new_zeros(x.shape[0], count), boundary], dim=1)[:, -count:]
    later = flags.flip(1).cumsum(1).flip(1) - flags.long()
    return kept.masked_fill((later > 0).unsqueeze(-1), 0)


def _delayed(flags: Tensor, distance: int) -> Tensor:
    """Flags (B, T) shifted right by `distance`, false in front."""
    if distance == 0:
        return flags
    return cat([flags.new_zeros(flags.shape[0], distance), flags], dim=1)[:, : flags.shape[1]]


def causal_filter(
    x: Tensor, weight: Tensor, last: Tensor | None, boundary: Tensor | None
) -> Tensor:
    """x (B, T, C) through a causal depthwise filter (C, K); see `filter_taps`."""
    kernel = weight.to(x.dtype)
    first, *taps = filter_taps(x, last, boundary, kernel.shape[1])
    return sum((tap * kernel[:, i] for i, tap in enumerate(taps, 1)), first * kernel[:, 0])


def shift_mix(x: Tensor, last: Tensor | None, boundary: Tensor | None, mix: Tensor) -> Tensor:
    """x + mix * prev(x) for x (B, T, G, E), mix (G,); `last` (B, G * E)."""
    before = previous(x.flatten(2), last, boundary).view(x.shape)
    return x + mix.to(x.dtype).unsqueeze(-1) * before


def split_heads(x: Tensor, width: int) -> Tensor:
    """(B, T, H * E) -> (B, T, H, E), E = width."""
    return x.view(*x.shape[:2], -1, width)


def local_value(y: Tensor, v: Tensor, mix: Tensor) -> Tensor:
    """y_h + mix_h * v of h's group; y (B, T, H, E), v (B, T, G, E), mix (H,)."""
    local = mix.to(y.dtype).view(v.shape[2], -1, 1) * v.unsqueeze(3)  # (B, T, G, H/G, E)
    return y + local.view(y.shape)


def exclude(y: Tensor, v: Tensor) -> Tensor:
    """Exclusive self attention: y_h - (y_h . u) u, u the unit vector of v of h's group.

    y (B, T, H, E), v (B, T, G, E).
    """
    unit = F.normalize(v, dim=-1).unsqueeze(3)  # (B, T, G, 1, E) beside (B, T, G, H/G, E)
    grouped = y.view(*v.shape[:3], -1, v.shape[3])
    return (grouped - (grouped * unit).sum(-1, keepdim=True) * unit).view(y.shape)


def rotation(
    base: float, half: int, frequency_dims: int, start: int, length: int, device: torch.device
) -> Rotation:
    """cos and sin of positions start .. start+T-1; angles are computed in float64.

    The newest are kept and given out again: they are not to be written to.
    """
    if torch.compiler.is_compiling():  # the compiler keeps what is constant by itself
        return _angles(base, half, frequency_dims, start, length, device)
    inference = torch.is_inference_mode_enabled()
    return _kept(base, half, frequency_dims, start, length, device, inference)


@lru_cache(maxsize=4)
def _kept(
    base: float,
    half: int,
    frequency_dims: int,
    start: int,
    length: int,
    device: torch.device,
    inference: bool,
) -> Rotation:
    """A tensor made in inference mode is of no use outside it, hence `inference` in the key."""
    return _angles(base, half, frequency_dims, start, length, device)


def _angles(
    base: float, half: int, frequency_dims: int, start: int, length: int, device: torch.device
) -> Rotation:
    exponents = torch.arange(half, dtype=torch.float64, device=device) * (-2.0 / frequency_dims)
    positions = torch.arange(start, start + length, dtype=torch.float64, device=device)
    angles = positions[:, None] * base**exponents
    return angles.cos().float(), angles.sin().float()


def rotate(x: Tensor, table: Rotation) -> Tensor:
    """Rotate the first R dims of x (B, T, H, E) as two halves.

    (a, b) becomes (a cos + b sin, -a sin + b cos).
    """
    cos, sin = (t[:, None].to(x.dtype) for t in table)  # (T, 1, R/2)
    half = cos.shape[-1]
    if half == 0:
        return x
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return cat([a * cos + b * sin, b * cos - a * sin, rest], dim=-1)
