"""The model's parts on the kernels: the equations of `niblick.model.equations`, fused.

`use_kernels` rewrites a built model. What applies is decided there, once, by what does not change:
shapes, types, the processor. A call with decode state, or a model with adapters, is computed by the
plain form.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from niblick.components import BIGRAM, MIXERS, MLP, SMEAR, VALUE_EMBEDDING, Call, VirtualLayer
from niblick.components.attention import Attention
from niblick.components.functional import dropped, split_heads
from niblick.components.token_shift import TokenShift
from niblick.model.ensemble import members_of
from niblick.model.equations import Equations, weights_of
from niblick.model.kernels import operators, products, rows
from niblick.model.kernels.attention import WIDTHS
from niblick.model.kernels.library import DTYPES, PANEL, Kernels
from niblick.model.lm import LanguageModel
from niblick.plan import Plan, Role

MAX_WIDTH = 16384  # rows are staged on the stack as float
FLOAT_DIM = 256  # of a float32 model; in a wider one the products of torch are as fast
MAX_CAP = 40.0  # e^(-2 cap) is still a normal float

ops: Any = torch.ops.niblick
DEFINED = (rows, products)  # importing them defines the operators


def use_kernels(model: LanguageModel, kernels: Kernels | None) -> bool:
    """Put the kernels into a built model, or take them out; whether they are in use.

    They need matrices of one float type on the CPU and float32 for all else, rows of at most
    MAX_WIDTH. A model that is moved or cast afterwards goes on in plain torch.
    """
    members = members_of(model)
    for member in members:
        member.kernels = None
    if kernels is None or not all(map(_takes, members)):
        return False
    operators.use(kernels)
    for member in members:
        whole = _multiplies(member, kernels)
        member.kernels = KernelForms(member.plan, member.dtype, whole=whole)
    return True


def _multiplies(model: LanguageModel, kernels: Kernels) -> bool:
    """Whether mixers and head run as one kernel each, with their products."""
    narrow = model.dtype is not torch.float32 or model.recipe.dim <= FLOAT_DIM
    return narrow and model.dtype in kernels.multiplies


def _takes(model: LanguageModel) -> bool:
    parameters = dict(model.named_parameters())
    for entry in model.plan.parameters:
        found = parameters[entry.name]
        matrix = entry.role is Role.MATRIX and entry.component != "head"
        alike = found.dtype is (model.dtype if matrix else torch.float32)
        table = entry.role is Role.HEAD or entry.component == "head"
        if not (alike or table) or found.device.type != "cpu" or not found.is_contiguous():
            return False
        if found.dim() and found.shape[-1] > MAX_WIDTH:
            return False
    return model.dtype in DTYPES


class KernelForms(Equations):
    """The parts of a model with matrices of `dtype`; `whole`: kernels multiply, too."""

    def __init__(self, plan: Plan, dtype: torch.dtype, *, whole: bool) -> None:
        self.dtype, self.multiplies = dtype, whole
        self._whole = {  # the matrices that kernels multiply by
            p.name.removesuffix(".weight")
            for p in plan.parameters
            if whole
            and len(p.shape) == 2
            and all(n % PANEL == 0 and n <= MAX_WIDTH for n in p.shape)
        }
        self._layers = [self._mixer(plan, layer) for layer in plan.layers]

    def takes(self, call: Call) -> bool:
        """A call of the type and the device that the kernels were put in for."""
        tokens = call.tokens
        return (
            call.dtype is self.dtype
            and tokens.device.type == "cpu"
            and tokens.dtype is torch.int64
            and 0 < tokens.shape[1] <= MAX_WIDTH
            and tokens.is_contiguous()
        )

    def embed(self, call: Call) -> Tensor:
        """As in `Equations`."""
        root, branch, scale = call.root, None, None
        factors = [call.factors.get(name) for name in ("token", "bigram")]
        if BIGRAM.used(call.model):
            rows = ops.lookup(BIGRAM.index(call), root.bigram.embed.weight, self.dtype)
            mapped = call.model.bigram.projection
            branch = self._linears(rows, root, "bigram.proj")[0] if mapped else rows
            scale = root.bigram.scale
        x: Tensor
        x, _ = ops.embed(call.tokens, root.tok_emb.weight, branch, scale, *factors, self.dtype)
        if SMEAR.used(call.model):
            x = ops.interpolate(x, call.boundary, 1 - torch.sigmoid(root.smear.gate))
        return x

    def values(self, call: Call) -> Tensor | None:
        """As in `Equations`."""
        if not VALUE_EMBEDDING.used(call.model):
            return None
        rows = ops.lookup(call.tokens, call.root.ve_embed.weight, self.dtype)
        (values,) = self._linears(rows, call.root, "ve_proj")
        return dropped(values, call.factors.get("value_embedding"))

    def block(self, layer: VirtualLayer, x: Tensor, x0: Tensor, call: Call) -> Tensor:
        """As in `Equations`."""
        (block, scalars), s = weights_of(layer, call), layer.scale
        if call.model.residual_mix.enabled:
            x, u, _ = ops.mix_norm(x, x0, scalars.resid_mix, s)
        else:
            u, _ = ops.norm(x, s)
        mixed = self._layers[layer.index](block, u, layer, call).to(x.dtype).contiguous()
        slope, a, b = MLP.slope(call.model), scalars.attn_scale, scalars.mlp_scale
        fc, proj = block.mlp.fc, block.mlp.proj
        out: Tensor
        if f"{layer.block}.mlp.fc" in self._whole:
            out, *_ = ops.channel(x, mixed, a, b, fc.weight, proj.weight, slope, s)
            return out
        y, n, _ = ops.add_norm(x, mixed, a, s)
        out = ops.add(y, proj(ops.square(fc(n), slope)), b)
        return out

    def pop(self, layer: VirtualLayer, x: Tensor, skip: Tensor, call: Call) -> Tensor:
        """As in `Equations`."""
        out: Tensor = ops.add(x, skip, call.root.skip_weights[layer.pop])
        return out

    def sidecar(self, site: int, x: Tensor, call: Call) -> Tensor:
        """As in `Equations`."""
        weights, root = call.root.shared_sparse, call.root
        n, _ = ops.norm(x, 1.0)
        values, gate = self._linears(n, root, "shared_sparse.value", "shared_sparse.gate")
        site_gate, kernel = weights.site_gate.weight[site], weights.local.weight.squeeze(1)
        local = ops.gated_filter(values, gate, site_gate, kernel, call.boundary)
        (added,) = self._linears(local, root, "shared_sparse.proj")
        out: Tensor = ops.add(x, added, root.shared_sparse_scale[site])
        return out

    def finish(self, x: Tensor, call: Call) -> Tensor:
        """As in `Equations`."""
        n: Tensor = ops.norm(x, 1.0)[0]
        return n

    def head_loss(
        self, hidden: Tensor, weight: Tensor, targets: Tensor, cap: float | None
    ) -> Tensor:
        """As in `Equations`."""
        vocab_size, width = weight.shape
        targets, found = targets.contiguous(), cap or 0.0
        side = 16 if self.dtype is torch.bfloat16 else PANEL
        if self.multiplies and width % side == vocab_size % 2 == 0 and 0 < found <= MAX_CAP:
            grads = torch.is_grad_enabled()
            loss: Tensor = ops.head_loss(hidden, weight, targets, found, grads)[0]
            return loss
        z = torch.nn.functional.linear(hidden, weight.to(hidden.dtype))
        if vocab_size > MAX_WIDTH:
            return super().head_loss(hidden, weight, targets, cap)
        nll: Tensor = ops.nll(z, targets, found)[0]
        return nll.mean()

    def _mixer(self, plan: Plan, layer: VirtualLayer) -> Any:
        """What computes a layer's mixer."""
        mixer = MIXERS[layer.mixer]
        if type(mixer) is TokenShift:
            return self._token_shift
        if type(mixer) is Attention and plan.model.attention.qk_norm:
            return partial(self._attention, mixer)
        return mixer.forward

    def _linears(self, x: Tensor, root: Any, *names: str) -> tuple[Tensor, ...]:
        """Several linear maps of one input, (..., width) each."""
        maps = [root.get_submodule(name) for name in names]
        if not self._whole.issuperset(names):
            return tuple(each(x) for each in maps)
        weights = [each.weight for each in maps]
        whole = weights[0] if len(weights) == 1 else torch.cat(weights)
        heights = [len(weight) for weight in weights] + [0] * (3 - len(weights))
        return tuple(ops.linears(x, whole, *heights)[: len(names)])

    def _token_shift(self, block: Any, u: Tensor, layer: VirtualLayer, call: Call) -> Tensor:
        """`TokenShift.forward`."""
        weights, mixes = block.mixer, (block.mixer.mix_r, block.mixer.mix_k)
        out: Tensor
        if f"{layer.block}.mixer.W_r" in self._whole:
            three = (weights.W_r.weight, weights.W_k.weight, weights.W_v.weight)
            out, *_ = ops.token_shift(u, call.boundary, *mixes, *three)
        else:
            r, k = ops.interpolations(u, call.boundary, *(torch.sigmoid(mix) for mix in mixes))
            out = ops.gate(weights.W_r(r), weights.W_v(ops.square(weights.W_k(k), 0.0)))
        return out

    def _attention(
        self, mixer: Attention, block: Any, u: Tensor, layer: VirtualLayer, call: Call
    ) -> Tensor:
        """`Attention.forward`, of normalised queries and keys."""
        options, weights, root = call.model.attention, block.attn, call.root
        gains, span = mixer.gains(layer, call), mixer.span(layer, call.context)
        names = [f"{layer.block}.attn.{name}" for name in ("c_q", "c_k", "c_v")]
        y: Tensor
        if self._whole.issuperset(names) and not options.kv_shift:
            whole = torch.cat([root.get_submodule(name).weight for name in names])
            sizes = (options.heads, options.kv_heads, call.model.head_dim)
            q, k, v, *_ = ops.project(u, whole, *gains, *call.rotary, *sizes)
            v = self._embedded(v, layer, call)
        else:
            q, k, v = (split_heads(t, call.model.head_dim) for t in self._linears(u, root, *names))
            v = self._embedded(v, layer, call)
            if options.kv_shift:
                k = ops.shift_mix(k, call.boundary, weights.k_shift_mix)
                v = ops.shift_mix(v, call.boundary, weights.v_shift_mix)
            q, k = (
                ops.heads(t, gain, *call.rotary)[0] for t, gain in zip((q, k), gains, strict=True)
            )
        fused = self.multiplies and call.model.head_dim in WIDTHS
        y, _ = (ops.attend if fused else ops.attend_tiles)(q, k, v, call.document_first, span)
        if options.local_value:
            y = ops.local_value(y, v, weights.local_v_mix)
        if layer.xsa:
            y = ops.exclude(y, v)
        return self._linears(y.flatten(2), root, f"{layer.block}.attn.proj")[0]

    def _embedded(self, v: Tensor, layer: VirtualLayer, call: Call) -> Tensor:
        """v (B, T, G, E) with the value embedding added, where the layer has it."""
        if not layer.value_embedding or call.value_embedding is None:
            return v
        scale = VALUE_EMBEDDING.scale(layer, call).contiguous()
        out: Tensor = ops.add(v.flatten(2), call.value_embedding, scale).view(v.shape)
        return out
