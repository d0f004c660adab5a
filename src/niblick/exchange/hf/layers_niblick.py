"""The parts of a niblick model in plain torch, and the cache that they remember in.

The cache has a constant size: rings of keys and values, and vectors for what looks one token back.
"""

import torch
from torch import nn
from torch.nn import functional as F

NO_TOKEN = -1


class NiblickCache:
    """What the model remembers: tensors (B, ...) by name, after `position` tokens.

    `context` is how many positions full attention sees.
    """

    is_compileable = False
    is_linear = (False,)

    def __init__(self, context):
        self.context, self.position, self.tensors = context, 0, {}

    def get_seq_length(self, layer_idx=0):
        return self.position

    def get_max_length(self):
        return -1

    def reorder_cache(self, beam_idx):
        self.tensors = {k: t.index_select(0, beam_idx) for k, t in self.tensors.items()}

    batch_select_indices = reorder_cache

    def batch_repeat_interleave(self, repeats):
        self.tensors = {k: t.repeat_interleave(repeats, 0) for k, t in self.tensors.items()}


class Call:
    """One forward pass: the cache before it, and what is to be remembered after it.

    In the cache the names of an ensemble's member begin with `prefix`.
    """

    def __init__(self, model, tokens, mask, cache, context, prefix=""):
        length, device = tokens.shape[1], tokens.device
        self.model, self.tokens, self.prefix = model, tokens, prefix
        held = cache.tensors if cache is not None and cache.position else {}
        self.before = {k[len(prefix) :]: t for k, t in held.items() if k.startswith(prefix)}
        self.position = cache.position if self.before else 0
        self.context, self.after = context, {}
        start = self.before.get("start")  # the first position (B, 1) that is no padding
        if start is None:
            start = torch.zeros_like(tokens[:, :1])
            if mask is not None:
                start = mask[:, :length].ne(0).long().argmax(1, keepdim=True)
        self.after["start"] = start
        self.positions = torch.arange(self.position, self.position + length, device=device)
        bos = tokens == model["bos_id"]
        self.boundary = self.positions == start
        if model["document_mask"]:
            self.boundary = self.boundary | bos
        self.first = start.expand(tokens.shape)  # the first position that each token may see
        if model["document_attention"] == "within":
            last = self.before.get("document", start)
            begins = torch.where(bos, self.positions, -1)
            self.first = torch.cat([last, begins], 1).cummax(1).values[:, 1:]
            self.after["document"] = self.first[:, -1:]
        self.values = None  # the value embedding (B, T, G * E)
        self.rotary = rotation(model, context, self.positions)

    @property
    def remembered(self):
        """What a cache is to hold after it."""
        return {self.prefix + name: tensor for name, tensor in self.after.items()}

    def previous(self, name, x):
        """x (B, T, C) one position earlier, zero where a text begins; remembers the last."""
        last = self.before.get(name)
        last = torch.zeros_like(x[:, :1]) if last is None else last.to(x.dtype)
        self.after[name] = x[:, -1:]
        return torch.cat([last, x[:, :-1]], 1).masked_fill(self.boundary[..., None], 0)

    def filtered(self, name, x, kernel):
        """x (B, T, C) through a causal depthwise filter (C, K) that no boundary lets through."""
        width, length = kernel.shape[1], x.shape[1]
        past, flags = self.before.get(name), self.before.get(name + ".boundary")
        if past is None:
            past = x.new_zeros(x.shape[0], width - 1, x.shape[2])
            flags = self.boundary.new_zeros(x.shape[0], width - 1)
        whole = torch.cat([past.to(x.dtype), x], 1)
        begins = torch.cat([flags, self.boundary], 1)
        out, hidden = x * kernel[:, -1], torch.zeros_like(self.boundary)
        for back in range(1, width):
            hidden = hidden | begins[:, width - back : width - back + length]
            tap = whole[:, width - 1 - back : width - 1 - back + length]
            out = out + tap.masked_fill(hidden[..., None], 0) * kernel[:, -1 - back]
        self.after[name] = whole[:, length:]
        self.after[name + ".boundary"] = begins[:, length:]
        return out

    def ring(self, name, x, span):
        """The newest `span` earlier positions of x (B, G, T, E), and its own."""
        if name in self.before:
            x = torch.cat([self.before[name].to(x.dtype), x], 2)
        self.after[name] = x[:, :, -span:]
        return x


def rotation(model, context, positions):
    """cos and sin (T, 1, R/2) of the rotary embedding, for a declared context."""
    attention, rope = model["attention"], model["attention"]["rope"]
    head = model["dim"] // attention["heads"]
    dims = {"full": head, "adaptive": head if head <= 32 else (3 * head // 4) // 2 * 2}
    dims = dims.get(rope["dims"], rope["dims"])
    width = {"head": head, "rotary": max(dims, 1)}.get(
        rope["frequency_dims"], rope["frequency_dims"]
    )
    base, trained = rope["base"], rope["train_length"]
    if trained is not None and context > trained:
        base = base * (context / trained) ** (dims / (dims - 2))
    exponents = torch.arange(dims // 2, dtype=torch.float64, device=positions.device)
    angles = positions[:, None].double() * base ** (exponents * (-2.0 / width))
    return angles.cos()[:, None], angles.sin()[:, None]


def rms(x):
    """x over its root mean square along the last axis."""
    return F.rms_norm(x, (x.shape[-1],))


def rotate(x, rotary):
    """Rotate the first dimensions of x (B, T, H, E) as two halves."""
    cos, sin = (t.to(torch.float32).to(x.dtype) for t in rotary)
    half = cos.shape[-1]
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat([a * cos + b * sin, b * cos - a * sin, rest], -1)


class Linear(nn.Linear):
    """A linear map without a bias."""

    def __init__(self, into, out):
        super().__init__(into, out, bias=False)


class TokenShift(nn.Module):
    """sigmoid(W_r r) * W_v relu(W_k k)^2, r and k between a position and the one before it."""

    def __init__(self, model):
        super().__init__()
        dim, mix = model["dim"], model["token_shift"]["mix"]
        self.mix_r = nn.Parameter(torch.full((dim,), mix))
        self.mix_k = nn.Parameter(torch.full((dim,), mix))
        self.W_r, self.W_k, self.W_v = (Linear(dim, dim) for _ in range(3))

    def forward(self, u, layer, gains, call):
        before = call.previous(f"{layer['index']}.shift", u)
        r = before.lerp(u, self.mix_r.sigmoid().to(u.dtype))
        k = before.lerp(u, self.mix_k.sigmoid().to(u.dtype))
        return self.W_r(r).sigmoid() * self.W_v(self.W_k(k).relu().square())


class Gains(nn.Module):
    """The scales of a layer's branches and its residual mix."""

    def __init__(self, model):
        super().__init__()
        dim = model["dim"]
        self.attn_scale, self.mlp_scale = (nn.Parameter(torch.ones(dim)) for _ in range(2))
        if model["residual_mix"]["enabled"]:
            self.resid_mix = nn.Parameter(torch.stack([torch.ones(dim), torch.zeros(dim)]))


def add_gains(module, model):
    """Give a module the gains of queries and keys that the model has."""
    options = model["attention"]
    if options["q_gain"] is not None:
        module.q_gain = nn.Parameter(torch.full((options["heads"],), options["q_gain"]))
    if options["k_gain"]:
        module.k_gain = nn.Parameter(torch.ones(options["kv_heads"]))


class Attention(nn.Module):
    """Grouped-query attention over `span` positions with the options of the configuration."""

    def __init__(self, model):
        super().__init__()
        options, dim = model["attention"], model["dim"]
        self.options, self.width = options, dim // options["heads"]
        narrow = options["kv_heads"] * self.width
        self.c_q, self.proj = Linear(dim, dim), Linear(dim, dim)
        self.c_k, self.c_v = Linear(dim, narrow), Linear(dim, narrow)
        if model["scalars"] == "block":
            add_gains(self, model)
        if options["kv_shift"]:
            self.k_shift_mix = nn.Parameter(torch.zeros(options["kv_heads"]))
            self.v_shift_mix = nn.Parameter(torch.zeros(options["kv_heads"]))
        if options["local_value"]:
            self.local_v_mix = nn.Parameter(torch.zeros(options["heads"]))

    def forward(self, u, layer, gains, call):
        name, span = str(layer["index"]), layer["span"] or call.context
        gains = gains if hasattr(gains, "q_gain") or hasattr(gains, "k_gain") else self
        q, k, v = (c(u).unflatten(-1, (-1, self.width)) for c in (self.c_q, self.c_k, self.c_v))
        if layer["value_embedding"]:
            v = (v.flatten(2) + layer["value_scale"].to(v.dtype) * call.values).view(v.shape)
        if self.options["kv_shift"]:
            k = self.shifted(k, self.k_shift_mix, name + ".k_shift", call)
            v = self.shifted(v, self.v_shift_mix, name + ".v_shift", call)
        q = self.turned(q, getattr(gains, "q_gain", None), call)
        k = self.turned(k, getattr(gains, "k_gain", None), call)
        y = self.attend(q, k, v, name, span, call)
        grouped = y.unflatten(2, (v.shape[2], -1))  # (B, T, G, H / G, E)
        if self.options["local_value"]:
            mix = self.local_v_mix.to(y.dtype).view(v.shape[2], -1, 1)
            grouped = grouped + mix * v.unsqueeze(3)
        if layer["xsa"]:
            unit = F.normalize(v, dim=-1).unsqueeze(3)
            grouped = grouped - (grouped * unit).sum(-1, keepdim=True) * unit
        return self.proj(grouped.flatten(2))

    def shifted(self, x, mix, name, call):
        before = call.previous(name, x.flatten(2)).view(x.shape)
        return x + mix.to(x.dtype)[:, None] * before

    def turned(self, x, gain, call):
        x = rotate(rms(x) if self.options["qk_norm"] else x, call.rotary)
        return x if gain is None else x * gain.to(x.dtype)[:, None]

    def attend(self, q, k, v, name, span, call):
        """Softmax over the newest `span` positions from `call.first` on; a padding sees itself."""
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        k, v = call.ring(name + ".keys", k, span), call.ring(name + ".values", v, span)
        query = call.positions[:, None]
        key = torch.arange(query[-1, 0] + 1 - k.shape[2], query[-1, 0] + 1, device=q.device)
        seen = (key <= query) & (key > query - span)
        seen = seen & (key >= call.first[..., None]) | (key == query)
        k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
        return F.scaled_dot_product_attention(q, k, v, seen[:, None]).transpose(1, 2)


class Mlp(nn.Module):
    """W_2 act(W_1 u)^2."""

    def __init__(self, model):
        super().__init__()
        hidden = round(model["dim"] * model["mlp"]["width"])
        leaky = model["mlp"]["activation"] == "leaky-relu-squared"
        self.slope = model["mlp"]["slope"] if leaky else 0.0
        self.fc, self.proj = Linear(model["dim"], hidden), Linear(hidden, model["dim"])

    def forward(self, u):
        return self.proj(F.leaky_relu(self.fc(u), self.slope).square())


class Block(nn.Module):
    """A mixer and a channel mixer, with scales of their own unless each visit has some."""

    def __init__(self, model, mixer):
        super().__init__()
        if model["scalars"] == "block":
            own = Gains(model)
            for name, parameter in own.named_parameters():
                self.register_parameter(name, parameter)
        if mixer == "token-shift":
            self.mixer = TokenShift(model)
        else:
            self.attn = Attention(model)
        self.mlp = Mlp(model)

    def forward(self, x, x0, layer, scalars, call):
        if hasattr(scalars, "resid_mix"):
            mix = scalars.resid_mix.to(x.dtype)
            x = mix[0] * x + mix[1] * x0
        mixer = self.attn if hasattr(self, "attn") else self.mixer
        s, a, b = layer["scale"], scalars.attn_scale.to(x.dtype), scalars.mlp_scale.to(x.dtype)
        x = x + a * mixer(s * rms(x), layer, scalars, call)
        return x + b * self.mlp(s * rms(x))


class Bigram(nn.Module):
    """Rows of a table found by hashing a token and the one before it."""

    def __init__(self, model):
        super().__init__()
        options = model["bigram"]
        self.buckets = options["buckets"]
        self.scale = nn.Parameter(torch.tensor(options["scale"]))
        self.embed = nn.Embedding(options["buckets"], options["width"])
        self.proj = Linear(options["width"], model["dim"]) if options["projection"] else None

    def forward(self, call):
        tokens, last = call.tokens, call.before.get("bigram")
        last = torch.full_like(tokens[:, :1], NO_TOKEN) if last is None else last
        call.after["bigram"] = tokens[:, -1:]
        before = torch.cat([last, tokens[:, :-1]], 1).masked_fill(call.boundary, NO_TOKEN)
        mixed = torch.bitwise_xor(36313 * tokens.int(), 27191 * before.int()).long()
        index = torch.remainder(mixed, self.buckets - 1)
        rows = self.embed(torch.where(before == NO_TOKEN, self.buckets - 1, index))
        return self.scale.to(rows.dtype) * (rows if self.proj is None else self.proj(rows))


class Smear(nn.Module):
    """Each embedding blended with the one before it."""

    def __init__(self, model):
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(model["dim"]))

    def forward(self, x, call):
        gate = self.gate.sigmoid().to(x.dtype)
        return (1 - gate) * x + gate * call.previous("smear", x)


class Sidecar(nn.Module):
    """W_p(silu(W_g n + gate) * conv(W_v n)), n = rms(x), with a gate per site."""

    def __init__(self, model):
        super().__init__()
        options, dim = model["sidecar"], model["dim"]
        width = options["width"]
        self.gate, self.value, self.proj = (
            Linear(dim, width),
            Linear(dim, width),
            Linear(width, dim),
        )
        self.local = nn.Conv1d(width, width, options["kernel"], groups=width, bias=False)
        self.site_gate = nn.Embedding(len(options["layers"]), width)

    def forward(self, x, site, call):
        n = rms(x)
        gate = F.silu(self.gate(n) + self.site_gate.weight[site].to(x.dtype))
        kernel = self.local.weight.squeeze(1).to(x.dtype)
        return self.proj(gate * call.filtered(f"sidecar.{site}", self.value(n), kernel))
