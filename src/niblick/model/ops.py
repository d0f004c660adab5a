"""The operations between matrix products, in plain torch: the readable reference of every faster
form.

A model holds one object of this kind and calls it for everything that runs over activations.
`FusedOps` replaces it on the CPU during training, with the same numbers up to rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from niblick.model.banded import banded_attention
from niblick.model.rotary import rotate
from niblick.model.shift import filter_taps, previous
from niblick.model.tree import Linear


def rms(x: Tensor) -> Tensor:
    """RMS normalisation over the last axis, no weight, PyTorch's default eps."""
    return F.rms_norm(x, (x.shape[-1],))


def dropped(rows: Tensor, factor: Tensor | None) -> Tensor:
    """The rows (B, T, E) of a table as dropout leaves them: all of them outside training."""
    return rows if factor is None else rows * factor.to(rows.dtype)


Factors = tuple[Tensor | None, Tensor | None]


class Ops:
    """Plain forms; x, x0, branch, u (B, T, D) of one dtype, control values float32."""

    def lookup(self, ids: Tensor, table: Tensor, dtype: torch.dtype) -> Tensor:
        """Rows (B, T, D) in `dtype` of a table (N, D) at ids (B, T) int64."""
        return F.embedding(ids, table).to(dtype)

    def embed(
        self,
        ids: Tensor,
        table: Tensor,
        dtype: torch.dtype,
        branch: Tensor | None,
        share: Tensor | None,
        factors: Factors,
    ) -> Tensor:
        """rms(f * row + f' * share * branch) (B, T, D) in `dtype`: rows of the table (V, D) at ids,
        a branch (B, T, D) with its 0-dimensional share or neither, and the factors f and f' (B, T,
        1) or None.
        """
        x = dropped(F.embedding(ids, table), factors[0])
        if branch is not None and share is not None:
            x = x + dropped(
                share * branch, factors[1]
            )  # of the branch's dtype, as the share has no axes
        return rms(x).to(dtype)

    def mix_norm(
        self, x: Tensor, x0: Tensor, mix: Tensor | None, scale: float
    ) -> tuple[Tensor, Tensor]:
        """(m, scale * rms(m)) with m = mix[0] * x + mix[1] * x0, or x itself without `mix` (2,
        D).
        """
        if mix is not None:
            mix = mix.to(x.dtype)
            x = mix[0] * x + mix[1] * x0
        return x, _scaled(rms(x), scale)

    def add_norm(
        self, x: Tensor, branch: Tensor, weight: Tensor, scale: float
    ) -> tuple[Tensor, Tensor]:
        """(y, scale * rms(y)) with y = x + weight * branch, weight (D,)."""
        y = self.add(x, branch, weight)
        return y, _scaled(rms(y), scale)

    def add(self, x: Tensor, branch: Tensor, weight: Tensor) -> Tensor:
        """x + weight * branch."""
        return x + weight.to(x.dtype) * branch

    def interpolate(
        self, u: Tensor, last: Tensor | None, boundary: Tensor | None, first: Tensor, second: Tensor
    ) -> tuple[Tensor, Tensor]:
        """prev(u) + s * (u - prev(u)) for s = first and second (D,); `last` and `boundary` as for
        `previous`.
        """
        before = previous(u, last, boundary)
        return before.lerp(u, first.to(u.dtype)), before.lerp(u, second.to(u.dtype))

    def square(self, x: Tensor, slope: float) -> Tensor:
        """leaky_relu(x, slope)^2."""
        return (F.relu(x) if slope == 0 else F.leaky_relu(x, slope)).square()

    def channel(
        self,
        x: Tensor,
        branch: Tensor,
        weight: Tensor,
        scale: float,
        up: Linear,
        down: Linear,
        share: Tensor,
        slope: float,
    ) -> Tensor:
        """y + share * W_2 act(W_1 n)^2 with y, n = add_norm(x, branch, weight, scale), W_1 = up,
        W_2 = down, act leaky.
        """
        y, n = self.add_norm(x, branch, weight, scale)
        return self.add(y, down(self.square(up(n), slope)), share)

    def token_shift(
        self,
        u: Tensor,
        last: Tensor | None,
        boundary: Tensor | None,
        mixes: tuple[Tensor, Tensor],
        maps: tuple[Linear, Linear, Linear],
    ) -> Tensor:
        """sigmoid(W_r r) * (W_v relu(W_k k)^2), maps W_r, W_k, W_v (D, D); r, k = interpolate(u,
        ..., *sigmoid(mixes)).
        """
        receive, key = self.interpolate(u, last, boundary, *(torch.sigmoid(mix) for mix in mixes))
        w_r, w_k, w_v = maps
        return self.gate(w_r(receive), w_v(self.square(w_k(key), 0.0)))

    def maps(self, x: Tensor, maps: tuple[Linear, ...]) -> tuple[Tensor, ...]:
        """Several linear maps of one input (..., D): a tensor (..., height) each."""
        return tuple(each(x) for each in maps)

    def gate(self, gate: Tensor, x: Tensor) -> Tensor:
        """sigmoid(gate) * x."""
        return torch.sigmoid(gate) * x

    def nll(self, z: Tensor, targets: Tensor, cap: float | None) -> Tensor:
        """-ln p(target) (B, T) float32 from logits before the softcap (B, T, V)."""
        capped = z.float() if cap is None else cap * torch.tanh(z.float() / cap)
        return F.cross_entropy(capped.flatten(0, 1), targets.flatten(), reduction="none").view(
            targets.shape
        )

    def head_loss(
        self, hidden: Tensor, weight: Tensor, targets: Tensor, cap: float | None
    ) -> Tensor:
        """The mean of `nll` over all positions, of the logits hidden @ weight.T: hidden (B, T, D),
        weight (V, D) of any float type.
        """
        return self.nll(F.linear(hidden, weight.to(hidden.dtype)), targets, cap).mean()

    def smear(
        self, x: Tensor, last: Tensor | None, boundary: Tensor | None, gate: Tensor
    ) -> Tensor:
        """(1 - gate) * x + gate * prev(x), gate (D,)."""
        gate = gate.to(x.dtype)
        return (1 - gate) * x + gate * previous(x, last, boundary)

    def exclude(self, y: Tensor, v: Tensor) -> Tensor:
        """Exclusive self attention: y_h - (y_h . u) u, u the unit vector of v of h's group; y (B,
        T, H, E).
        """
        unit = F.normalize(v, dim=-1).unsqueeze(3)  # (B, T, G, 1, E) beside (B, T, G, H/G, E)
        grouped = y.view(*v.shape[:3], -1, v.shape[3])
        return (grouped - (grouped * unit).sum(-1, keepdim=True) * unit).view(y.shape)

    def shift_mix(
        self, x: Tensor, last: Tensor | None, boundary: Tensor | None, mix: Tensor
    ) -> Tensor:
        """x + mix * prev(x) for x (B, T, G, E), mix (G,); `last` (B, G * E) and `boundary` as for
        `previous`.
        """
        return x + mix.to(x.dtype).unsqueeze(-1) * previous(x.flatten(2), last, boundary).view(
            x.shape
        )

    def local_value(self, y: Tensor, v: Tensor, mix: Tensor) -> Tensor:
        """y_h + mix_h * v of h's group; y (B, T, H, E), v (B, T, G, E), mix (H,)."""
        groups = v.shape[2]
        local = mix.to(y.dtype).view(groups, -1, 1) * v.unsqueeze(3)  # (B, T, G, H/G, E)
        return y + local.view(y.shape)

    def gated_filter(
        self,
        values: Tensor,
        gate: Tensor,
        site: Tensor,
        weight: Tensor,
        last: Tensor | None,
        boundary: Tensor | None,
    ) -> Tensor:
        """silu(gate + site) * conv(values): values, gate (B, T, S), site (S,), weight (S, K) of a
        causal depthwise filter; `last` and `boundary` as for `filter_taps`.
        """
        kernel = weight.to(values.dtype)
        taps = filter_taps(values, last, boundary, kernel.shape[1])
        local = sum(
            (tap * kernel[:, i] for i, tap in enumerate(taps[1:], 1)), taps[0] * kernel[:, 0]
        )
        return F.silu(gate + site.to(gate.dtype)) * local

    def normed_heads(self, x: Tensor, gain: Tensor | None, table: tuple[Tensor, Tensor]) -> Tensor:
        """gain * rotate(rms(x)) for x (B, T, H, E), gain (H,)."""
        x = rotate(rms(x), table)
        return x if gain is None else x * gain.to(x.dtype)[:, None]

    def heads(self, x: Tensor, gain: Tensor | None, table: tuple[Tensor, Tensor]) -> Tensor:
        """`normed_heads`, laid out as `attend` takes queries and keys: (B, T, H, E) -> (B, H, T,
        E).
        """
        return self.normed_heads(x, gain, table).transpose(1, 2)

    def project(
        self,
        u: Tensor,
        maps: tuple[Linear, Linear, Linear],
        gains: tuple[Tensor | None, Tensor | None],
        table: tuple[Tensor, Tensor],
        width: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Attention's inputs from u (B, T, D): `heads` of queries (B, H, T, E) and keys (B, G, T,
        E), values (B, T, G, E).
        """
        q, k, v = (each.view(*each.shape[:2], -1, width) for each in self.maps(u, maps))
        return self.heads(q, gains[0], table), self.heads(k, gains[1], table), v

    def attend(self, q: Tensor, k: Tensor, v: Tensor, span: int) -> Tensor:
        """Stateless causal attention over the `span` newest positions: q (B, H, T, E), k (B, G, T,
        E), v (B, T, G, E) -> (B, T, H, E).
        """
        repeat = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(repeat, 1), v.transpose(1, 2).repeat_interleave(repeat, 1)
        return banded_attention(q, k, v, span).transpose(1, 2)


def _scaled(x: Tensor, scale: float) -> Tensor:
    return x if scale == 1.0 else x * scale
