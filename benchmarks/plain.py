"""What a good engineer writes first: the same models with nn.Linear, masked
scaled_dot_product_attention and autocast.

The yardstick of benchmarks/training.py; it shares nothing with the package but the recipe and the
plan.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from niblick.plan import VirtualLayer, make_plan
from niblick.recipe.model import ModelRecipe


def norm(x: Tensor) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],))


def prev(x: Tensor) -> Tensor:
    return F.pad(x, (0, 0, 1, 0))[:, :-1]


class Attention(nn.Module):
    def __init__(self, m: ModelRecipe, layer: VirtualLayer) -> None:
        super().__init__()
        self.m, self.layer = m, layer
        kv = m.attention.kv_heads * m.head_dim
        self.q, self.k, self.v = (
            nn.Linear(m.dim, m.dim, False),
            nn.Linear(m.dim, kv, False),
            nn.Linear(m.dim, kv, False),
        )
        self.out = nn.Linear(m.dim, m.dim, False)
        self.q_gain = nn.Parameter(torch.full((m.attention.heads, 1), 1.5))
        self.k_gain = (
            nn.Parameter(torch.ones(m.attention.kv_heads, 1)) if m.attention.k_gain else None
        )
        self.local = (
            nn.Parameter(torch.zeros(m.attention.heads, 1)) if m.attention.local_value else None
        )
        self.shifts = nn.Parameter(torch.zeros(2, 1)) if m.attention.kv_shift else None

    def rotate(self, x: Tensor) -> Tensor:
        half = self.m.rope_dims // 2
        angle = torch.arange(x.shape[1], device=x.device)[:, None] * 10000.0 ** (
            -2.0 * torch.arange(half, device=x.device) / self.m.rope_frequency_dims
        )
        cos, sin = angle.cos()[:, None].to(x.dtype), angle.sin()[:, None].to(x.dtype)
        a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
        return torch.cat([a * cos + b * sin, b * cos - a * sin, rest], -1)

    def forward(self, u: Tensor, extra: Tensor | None) -> Tensor:
        m, (b, t, d) = self.m, u.shape
        q, k, v = self.q(u), self.k(u), self.v(u)
        if extra is not None:
            v = v + extra
        if self.shifts is not None:
            k, v = k + self.shifts[0] * prev(k), v + self.shifts[1] * prev(v)
        q, k, v = (x.view(b, t, -1, m.head_dim) for x in (q, k, v))
        q, k = self.rotate(norm(q)) * self.q_gain, self.rotate(norm(k))
        if self.k_gain is not None:
            k = k * self.k_gain
        repeat = m.attention.heads // m.attention.kv_heads
        k, v = k.repeat_interleave(repeat, 2), v.repeat_interleave(repeat, 2)
        i = torch.arange(t, device=u.device)
        mask = (i[None] <= i[:, None]) & (i[None] > i[:, None] - self.layer.span)
        heads = (x.transpose(1, 2).to(v.dtype) for x in (q, k, v))
        if u.is_cuda and t <= self.layer.span:  # where the flash kernel takes it
            y = F.scaled_dot_product_attention(*heads, is_causal=True).transpose(1, 2)
        else:
            y = F.scaled_dot_product_attention(*heads, attn_mask=mask).transpose(1, 2)
        if self.local is not None:
            y = y + self.local * v
        if self.layer.xsa:
            unit = F.normalize(v, dim=-1)
            y = y - (y * unit).sum(-1, keepdim=True) * unit
        return self.out(y.reshape(b, t, d))


class TokenShift(nn.Module):
    def __init__(self, m: ModelRecipe) -> None:
        super().__init__()
        self.r, self.k, self.v = (nn.Linear(m.dim, m.dim, False) for _ in range(3))
        self.mix = nn.Parameter(torch.full((2, m.dim), 0.5))

    def forward(self, u: Tensor, extra: Tensor | None) -> Tensor:
        before, (mr, mk) = prev(u), torch.sigmoid(self.mix)
        r, k = u * mr + before * (1 - mr), u * mk + before * (1 - mk)
        return torch.sigmoid(self.r(r)) * self.v(F.relu(self.k(k)).square())


class Block(nn.Module):
    def __init__(self, m: ModelRecipe, layer: VirtualLayer) -> None:
        super().__init__()
        self.slope = 0.0 if m.mlp.activation == "relu-squared" else m.mlp.slope
        self.mixer = TokenShift(m) if layer.mixer == "token-shift" else Attention(m, layer)
        self.up, self.down = nn.Linear(m.dim, m.mlp_dim, False), nn.Linear(m.mlp_dim, m.dim, False)

    def mlp(self, u: Tensor) -> Tensor:
        return self.down(F.leaky_relu(self.up(u), self.slope).square())


class Sidecar(nn.Module):
    def __init__(self, m: ModelRecipe) -> None:
        super().__init__()
        w = m.sidecar.width
        self.gate, self.value, self.out = (
            nn.Linear(m.dim, w, False),
            nn.Linear(m.dim, w, False),
            nn.Linear(w, m.dim, False),
        )
        self.conv = nn.Conv1d(w, w, m.sidecar.kernel, groups=w, bias=False)
        self.scale = nn.Parameter(torch.zeros(len(m.sidecar.layers), m.dim))

    def forward(self, x: Tensor, site: int) -> Tensor:
        n = norm(x)
        value = self.conv(F.pad(self.value(n).mT, (self.conv.kernel_size[0] - 1, 0))).mT
        return x + self.scale[site] * self.out(F.silu(self.gate(n)) * value)


class PlainModel(nn.Module):
    """The model of a recipe, parameters in nn modules; `forward` gives the mean loss."""

    def __init__(self, m: ModelRecipe) -> None:
        super().__init__()
        self.m, self.plan = m, make_plan(m)
        n = len(self.plan.layers)
        self.tokens = nn.Embedding(m.vocab_size, m.dim)
        nn.init.normal_(self.tokens.weight, std=m.embedding.std)
        if m.bigram.enabled:
            self.bigrams = nn.Embedding(m.bigram.buckets, m.bigram.width)
            self.bigram_out = nn.Linear(m.bigram.width, m.dim, False)
        if m.value_embedding.enabled:
            self.values = nn.Embedding(m.vocab_size, m.value_embedding.width)
            self.values_out = nn.Linear(
                m.value_embedding.width, m.attention.kv_heads * m.head_dim, False
            )
        self.smear = nn.Parameter(torch.zeros(m.dim)) if m.smear.enabled else None
        self.mixes = nn.Parameter(torch.stack([torch.ones(n, m.dim), torch.zeros(n, m.dim)], 1))
        self.scales = nn.Parameter(torch.ones(n, 2, m.dim))
        self.skips = nn.Parameter(torch.ones(max(1, n // 2), m.dim))
        blocks = {layer.block.replace(".", "_"): layer for layer in self.plan.layers}
        self.blocks = nn.ModuleDict({name: Block(m, layer) for name, layer in blocks.items()})
        self.sidecar = Sidecar(m) if m.sidecar.enabled else None

    def embed(self, t: Tensor) -> Tensor:
        e = self.tokens(t)
        if self.m.bigram.enabled:
            before = F.pad(t, (1, 0))[:, :-1]
            index = torch.bitwise_xor(36313 * t, 27191 * before) % (self.m.bigram.buckets - 1)
            e = e + 0.05 * self.bigram_out(self.bigrams(index))
        x = norm(e)
        if self.smear is not None:
            g = torch.sigmoid(self.smear)
            x = (1 - g) * x + g * prev(x)
        return x

    def forward(self, t: Tensor, targets: Tensor) -> Tensor:
        x = x0 = self.embed(t)
        extra = 0.1 * self.values_out(self.values(t)) if self.m.value_embedding.enabled else None
        kept: list[Tensor] = []
        for layer in self.plan.layers:
            block = self.blocks[layer.block.replace(".", "_")]
            mix, scale = self.mixes[layer.index], self.scales[layer.index]
            if layer.pop is not None:
                x = x + self.skips[layer.pop] * kept.pop()
            x = mix[0] * x + mix[1] * x0
            x = x + scale[0] * block.mixer(
                norm(x) * layer.scale, extra if layer.value_embedding else None
            )
            x = x + scale[1] * block.mlp(norm(x) * layer.scale)
            if layer.sidecar_site is not None:
                x = self.sidecar(x, layer.sidecar_site)
            if layer.push:
                kept.append(x)
        z = F.linear(norm(x), self.tokens.weight)
        z = z if self.m.softcap is None else self.m.softcap * torch.tanh(z / self.m.softcap)
        return F.cross_entropy(z.float().flatten(0, 1), targets.flatten())


def orthogonal_in_float32(
    grad: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float
) -> Tensor:
    """The iteration of torch.optim.Muon, which rounds to bfloat16 whatever the processor has."""
    a, b, c = coefficients
    tall = grad.shape[0] > grad.shape[1]
    x = grad.T if tall else grad
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


def optimizers(model: PlainModel, *, low: bool) -> list[torch.optim.Optimizer]:
    """torch.optim.Muon on matrices, in float32 unless `low`, fused AdamW on the rest."""
    if not low:
        torch.optim._muon._zeropower_via_newtonschulz = orthogonal_in_float32
    matrices = [m.weight for m in model.modules() if isinstance(m, nn.Linear)]
    known = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in known]
    return [torch.optim.Muon(matrices, lr=0.001), torch.optim.AdamW(rest, lr=0.001, fused=True)]
