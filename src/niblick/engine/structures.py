"""A model laid out for the native engine: its C structures, quantized matrices and places in the
state.

Mirrors native/engine.h field by field; `Layout` keeps alive every array that a structure points
into.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_double, c_float, c_int32, c_int64, c_uint8, c_void_p
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from niblick.components.attention import rotary_base
from niblick.engine.grids import find_base
from niblick.engine.lattice import BLOCK, Codes, encode
from niblick.model import LanguageModel
from niblick.plan import VirtualLayer

WIDE = 16
LARGEST = 4096  # widths beyond this do not fit the engine's fixed buffers
MIXERS = ("token-shift", "window", "full")
Ints = dict[str, Any]


class Matrix(ctypes.Structure):
    """nb_matrix."""

    _fields_ = [
        ("codes", POINTER(c_uint8)),
        ("scales", POINTER(c_float)),
        ("columns", POINTER(c_float)),
        ("tail", c_void_p),
        ("tail_at", POINTER(c_int32)),
        *((n, c_int32) for n in ("rows", "cols", "bits")),
    ]


class Layer(ctypes.Structure):
    """nb_layer."""

    _fields_ = [
        *((n, c_int32) for n in ("mixer", "span", "xsa", "push", "pop", "site")),
        *((n, c_float) for n in ("scale", "value_scale")),
        *(
            (n, POINTER(c_float))
            for n in ("attn_scale", "mlp_scale", "mix", "carry", "mix_r", "mix_k")
        ),
        *((n, POINTER(c_float)) for n in ("q_gain", "k_gain", "k_shift", "v_shift", "local_v")),
        *(
            (n, c_int64)
            for n in (
                "at_shift",
                "at_keys",
                "at_values",
                "at_key_steps",
                "at_value_steps",
                "at_k_shift",
                "at_v_shift",
                "at_sidecar",
            )
        ),
        *((n, Matrix) for n in ("r", "k", "v", "q", "out", "fc", "proj")),
    ]


class PlanStruct(ctypes.Structure):
    """nb_plan."""

    _fields_ = [
        *(
            (n, c_int32)
            for n in (
                "dim",
                "heads",
                "groups",
                "head",
                "vocab",
                "hidden",
                "half",
                "layers",
                "pushes",
            )
        ),
        *(
            (n, c_int32)
            for n in (
                "bos",
                "document_mask",
                "within",
                "qk_norm",
                "buckets",
                "side_width",
                "side_kernel",
            )
        ),
        *((n, c_int32) for n in ("columns", "slots", "threads")),
        *((n, c_float) for n in ("softcap", "slope", "bigram_scale")),
        ("layer", POINTER(Layer)),
        *((n, POINTER(c_float)) for n in ("smear", "side_gate", "side_scale", "side_kernels")),
        ("frequencies", POINTER(c_double)),
        *(
            (n, Matrix)
            for n in ("embedding", "head_matrix", "bigram", "bigram_proj", "value", "value_proj")
        ),
        *((n, Matrix) for n in ("side_g", "side_v", "side_p")),
        *((n, c_int64) for n in ("at_smear", "state_floats")),
    ]


def unsupported(model: LanguageModel) -> str | None:
    """Why the native engine cannot run `model`, None where it can."""
    recipe, plan = model.recipe, model.plan
    for layer in plan.layers:
        if layer.mixer not in MIXERS:
            return f"it has no {layer.mixer!r} mixer"
    widths = (
        recipe.dim,
        recipe.mlp_dim,
        recipe.bigram.width,
        recipe.value_embedding.width,
        recipe.sidecar.width,
    )
    if max(widths) > LARGEST:
        return f"a width of {max(widths)} is beyond its {LARGEST}"
    return None


class Layout:
    """The structures of one model for `slots` sequences; `weight_bytes` is what its weights
    take.
    """

    def __init__(
        self,
        model: LanguageModel,
        library: ctypes.CDLL,
        *,
        slots: int,
        columns: int,
        threads: int,
        exact: bool,
    ) -> None:
        """Raises `MemoryError` where the weights do not fit."""
        self._library, self._model, self._exact = library, model, exact
        self._tensors = dict(model.named_parameters())
        self._codes: dict[str, Codes] = {}
        self._memory = None
        matrices = (
            p.detach()[:8].float().cpu().numpy() for p in self._tensors.values() if p.dim() == 2
        )
        self._base = find_base(matrices)
        self._describe(slots, columns, threads)
        self._settle()
        self._describe(slots, columns, threads)
        self.weight_bytes = sum(c.nbytes for c in self._codes.values()) + sum(
            a.nbytes for a in self._arrays
        )
        self.state_bytes = 4 * self._floats * slots
        self.bits = {name: codes.bits for name, codes in self._codes.items()}
        del self._model, self._tensors

    def __del__(self) -> None:
        if getattr(self, "_memory", None):
            self._library.nb_free(self._memory)
            self._memory = None

    def _describe(self, slots: int, columns: int, threads: int) -> None:
        """Fill the structures, encoding each matrix when it is first met: in order of use."""
        self._arrays: list[NDArray[Any]] = []
        self._floats = 0
        layers = self._model.plan.layers
        self.layers = (Layer * len(layers))(*(self._layer(layer) for layer in layers))
        self.plan = self._plan(slots, columns, threads)

    def _settle(self) -> None:
        """Move all codes into one piece of the library's memory, in the order in which a token
        meets them.
        """
        total = sum(codes.data.nbytes for codes in self._codes.values())
        self._memory = self._library.nb_floats(total // 4 + 4096)
        if not self._memory:
            raise MemoryError(f"{total} bytes of weights do not fit into memory")
        whole = np.ctypeslib.as_array(ctypes.cast(self._memory, POINTER(c_uint8)), shape=(total,))
        at = 0
        for name, codes in self._codes.items():
            place = whole[at : at + codes.data.nbytes].reshape(codes.data.shape)
            place[:] = codes.data
            self._codes[name] = replace(codes, data=place)
            at += codes.data.nbytes

    def _place(self, floats: int) -> int:
        at, self._floats = self._floats, self._floats + floats
        return at

    def _vector(self, name: str | None, *, gate: bool = False) -> Any:
        """A pointer to a float32 parameter, or to its sigmoid; null without a name."""
        if name is None or name not in self._tensors:
            return None
        value = self._tensors[name].detach().float().cpu()
        array = np.ascontiguousarray((torch.sigmoid(value) if gate else value).reshape(-1).numpy())
        self._arrays.append(array)
        return array.ctypes.data_as(POINTER(c_float))

    def _matrix(self, name: str) -> Matrix:
        """A quantized parameter (rows, cols); the blocks that loops share are laid out once."""
        if name not in self._tensors:
            return Matrix()
        if name not in self._codes:
            weight = self._tensors[name].detach().float().cpu().numpy()
            steps = self._model.steps.get(name)
            self._codes[name] = encode(weight, exact=self._exact, base=self._base, steps=steps)
        return matrix_of(self._codes[name])

    def _layer(self, layer: VirtualLayer) -> Layer:
        model, block, scalars = self._model.recipe, layer.block, layer.scalars
        found = Layer(
            mixer=int(layer.mixer != "token-shift"),
            span=layer.span,
            xsa=layer.xsa,
            push=layer.push,
            pop=-1 if layer.pop is None else layer.pop,
            site=-1 if layer.sidecar_site is None else layer.sidecar_site,
            scale=layer.scale,
            attn_scale=self._vector(f"{scalars}.attn_scale"),
            mlp_scale=self._vector(f"{scalars}.mlp_scale"),
            mix=self._vector(f"{scalars}.resid_mix"),
            fc=self._matrix(f"{block}.mlp.fc.weight"),
            proj=self._matrix(f"{block}.mlp.proj.weight"),
        )
        if layer.pop is not None:
            carry = self._tensors["skip_weights"].detach().float().cpu().numpy()[layer.pop].copy()
            self._arrays.append(carry)
            found.carry = carry.ctypes.data_as(POINTER(c_float))
        if layer.sidecar_site is not None:
            found.at_sidecar = self._place((model.sidecar.kernel - 1) * model.sidecar.width)
        if layer.mixer == "token-shift":
            self._token_shift(found, f"{block}.mixer")
        else:
            self._attention(found, layer, f"{block}.attn")
        return found

    def _token_shift(self, found: Layer, prefix: str) -> None:
        found.mix_r = self._vector(f"{prefix}.mix_r", gate=True)
        found.mix_k = self._vector(f"{prefix}.mix_k", gate=True)
        for field, name in (("r", "W_r"), ("k", "W_k"), ("v", "W_v")):
            setattr(found, field, self._matrix(f"{prefix}.{name}.weight"))
        found.at_shift = self._place(self._model.recipe.dim)

    def _attention(self, found: Layer, layer: VirtualLayer, prefix: str) -> None:
        groups, width = self._model.recipe.attention.kv_heads, self._model.recipe.head_dim
        for field, name in (("q", "c_q"), ("k", "c_k"), ("v", "c_v"), ("out", "proj")):
            setattr(found, field, self._matrix(f"{prefix}.{name}.weight"))
        found.q_gain, found.k_gain = (
            self._vector(f"{layer.gains}.{name}") for name in ("q_gain", "k_gain")
        )
        found.k_shift, found.v_shift = (
            self._vector(f"{prefix}.{name}_shift_mix") for name in ("k", "v")
        )
        found.local_v = self._vector(f"{prefix}.local_v_mix")
        if layer.value_embedding:
            found.value_scale = float(self._tensors[f"ve_scales.{layer.index}"].detach())
        ring = -(-layer.span // BLOCK) * BLOCK
        found.at_keys = self._place(groups * ring * width // 2)  # 16 bits each
        found.at_values = self._place(-(-groups * layer.span * _padded(width) // 2))
        found.at_key_steps = self._place(groups * ring)
        found.at_value_steps = self._place(groups * ring)
        if self._model.recipe.attention.kv_shift:
            found.at_k_shift, found.at_v_shift = (
                self._place(groups * width),
                self._place(groups * width),
            )

    def _plan(self, slots: int, columns: int, threads: int) -> PlanStruct:
        model, plan = self._model.recipe, self._model.plan
        base = rotary_base(model, model.context)
        frequencies = base ** (np.arange(model.rope_dims // 2) * (-2.0 / model.rope_frequency_dims))
        self._arrays.append(frequencies)
        return PlanStruct(
            dim=model.dim,
            heads=model.attention.heads,
            groups=model.attention.kv_heads,
            head=model.head_dim,
            vocab=model.vocab_size,
            hidden=model.mlp_dim,
            half=model.rope_dims // 2,
            layers=len(plan.layers),
            pushes=sum(layer.push for layer in plan.layers),
            bos=model.bos_id,
            document_mask=model.document_mask,
            within=model.document_attention == "within",
            qk_norm=model.attention.qk_norm,
            buckets=model.bigram.buckets,
            side_width=model.sidecar.width,
            side_kernel=model.sidecar.kernel,
            columns=columns,
            slots=slots,
            threads=threads,
            softcap=model.softcap or 0.0,
            slope=model.mlp.slope if model.mlp.activation == "leaky-relu-squared" else 0.0,
            layer=self.layers,
            frequencies=frequencies.ctypes.data_as(POINTER(c_double)),
            at_smear=self._place(model.dim) if model.smear.enabled else 0,
            **self._outside(),
            state_floats=self._floats,
        )

    def _outside(self) -> Ints:
        """Everything of the plan that is not in a layer."""
        tied = self._model.recipe.tied
        found: Ints = {
            "embedding": self._matrix("tok_emb.weight"),
            "head_matrix": self._matrix("tok_emb.weight" if tied else "lm_head.weight"),
            "bigram": self._matrix("bigram.embed.weight"),
            "bigram_proj": self._matrix("bigram.proj.weight"),
            "value": self._matrix("ve_embed.weight"),
            "value_proj": self._matrix("ve_proj.weight"),
            "smear": self._vector("smear.gate", gate=True),
            "side_gate": self._vector("shared_sparse.site_gate.weight"),
            "side_scale": self._vector("shared_sparse_scale"),
            "side_kernels": self._vector("shared_sparse.local.weight"),
        }
        for field, name in (("side_g", "gate"), ("side_v", "value"), ("side_p", "proj")):
            found[field] = self._matrix(f"shared_sparse.{name}.weight")
        if "bigram.scale" in self._tensors:
            found["bigram_scale"] = float(self._tensors["bigram.scale"].detach())
        return found


def _padded(count: int) -> int:
    return -(-count // WIDE) * WIDE


def matrix_of(codes: Codes) -> Matrix:
    """The structure of a matrix; it points into the arrays of `codes`."""
    return Matrix(
        codes.data.ctypes.data_as(POINTER(c_uint8)),
        codes.scales.ctypes.data_as(POINTER(c_float)),
        None if codes.columns is None else codes.columns.ctypes.data_as(POINTER(c_float)),
        None if codes.tail is None else codes.tail.ctypes.data,
        None if codes.tail_at is None else codes.tail_at.ctypes.data_as(POINTER(c_int32)),
        codes.rows,
        codes.cols,
        codes.bits,
    )
