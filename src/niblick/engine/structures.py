"""A model laid out for the native engine: C structures, matrices and places in the state.

Mirrors native/engine.h field by field. `Layout` keeps alive every array that a structure points to.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping, Sequence
from ctypes import POINTER, c_double, c_float, c_int32, c_int64, c_uint8, c_void_p
from typing import Any

import numpy as np
from numpy.typing import NDArray

from niblick.codecs.quantized import Floats, Tensors, dequantized
from niblick.engine.arithmetic import rotary_frequencies, sigmoid
from niblick.engine.weights import BLOCK, Codes, encode
from niblick.plan import Plan, VirtualLayer

WIDE = 16
LARGEST = 4096  # widths beyond this do not fit the engine's fixed buffers
MIXERS = ("token-shift", "window", "full")
Ints = dict[str, Any]


def _fields(kind: type, names: str) -> list[tuple[str, type]]:
    """Fields of one type, as `_fields_` lists them."""
    return [(name, kind) for name in names.split()]


class Matrix(ctypes.Structure):
    """nb_matrix."""

    _fields_ = [
        ("codes", POINTER(c_uint8)),
        *_fields(POINTER(c_float), "scales columns"),
        ("tail", c_void_p),
        ("tail_at", POINTER(c_int32)),
        *_fields(c_int32, "rows cols bits"),
    ]


class Layer(ctypes.Structure):
    """nb_layer."""

    _fields_ = [
        *_fields(c_int32, "mixer span xsa push pop site"),
        *_fields(c_float, "scale value_scale"),
        *_fields(POINTER(c_float), "attn_scale mlp_scale mix carry mix_r mix_k"),
        *_fields(POINTER(c_float), "q_gain k_gain k_shift v_shift local_v"),
        *_fields(c_int64, "at_shift at_keys at_values at_key_steps at_value_steps"),
        *_fields(c_int64, "at_k_shift at_v_shift at_sidecar"),
        *_fields(Matrix, "r k v q out fc proj"),
    ]


class PlanStruct(ctypes.Structure):
    """nb_plan."""

    _fields_ = [
        *_fields(c_int32, "dim heads groups head vocab hidden half layers pushes"),
        *_fields(c_int32, "bos document_mask within qk_norm buckets side_width side_kernel"),
        *_fields(c_int32, "columns slots threads"),
        *_fields(c_float, "softcap slope bigram_scale"),
        ("layer", POINTER(Layer)),
        *_fields(POINTER(c_float), "smear side_gate side_scale side_kernels"),
        ("frequencies", POINTER(c_double)),
        *_fields(Matrix, "embedding head_matrix bigram bigram_proj value value_proj"),
        *_fields(Matrix, "side_g side_v side_p"),
        *_fields(c_int64, "at_smear state_floats"),
    ]


def unsupported(plan: Plan) -> str | None:
    """Why the native engine cannot run `plan`, None where it can."""
    model = plan.model
    for layer in plan.layers:
        if layer.mixer not in MIXERS:
            return f"it has no {layer.mixer!r} mixer"
    parts = (model.bigram.width, model.value_embedding.width, model.sidecar.width)
    widest = max(model.dim, model.mlp_dim, *parts)
    if widest > LARGEST:
        return f"a width of {widest} is beyond its {LARGEST}"
    return None


class Layout:
    """The structures of one model; `weight_bytes` is what its weights take.

    `sizes` are the engine's slots, columns and threads; full attention sees `context` positions.
    Without a `library` the codes stay where they were made: to be written, not run.
    """

    def __init__(
        self,
        plan: Plan,
        tensors: Tensors,
        library: ctypes.CDLL | None,
        *,
        context: int,
        sizes: Mapping[str, int],
        known: dict[int, Codes] | None = None,
    ) -> None:
        """Raises `MemoryError` where the weights do not fit; `known` are matrices that are encoded
        already, by the identity of their tensors.
        """
        self._known = {} if known is None else known
        self._library, self._source, self._tensors = library, plan, tensors
        self._context, self._sizes = context, sizes
        self._codes: dict[str, Codes] = {}
        self._memory = None
        self._describe()
        if library is not None:
            self._settle(library)
        self.weight_bytes = sum(c.nbytes for c in self._codes.values()) + sum(
            a.nbytes for a in self._arrays
        )
        self.state_bytes = 4 * self._floats * sizes["slots"]
        self.bits = {name: codes.bits for name, codes in self._codes.items()}
        del self._source, self._tensors, self._known

    def __del__(self) -> None:
        if self._library is not None and getattr(self, "_memory", None):
            self._library.nb_free(self._memory)
            self._memory = None

    def _describe(self) -> None:
        """Fill the structures; each matrix is encoded when it is first met: in order of use."""
        self._arrays: list[NDArray[Any]] = []
        self._floats = 0
        layers = self._source.layers
        self.layers = (Layer * len(layers))(*(self._layer(layer) for layer in layers))
        self.plan = self._plan()

    def _settle(self, library: ctypes.CDLL) -> None:
        """Move all codes into one piece of the library's memory, in the order of their use, and
        point the structures there.
        """
        total = sum(codes.data.nbytes for codes in self._codes.values())
        self._memory = library.nb_floats(total // 4 + 4096)
        if not self._memory:
            raise MemoryError(f"{total} bytes of weights do not fit into memory")
        whole = np.ctypeslib.as_array(ctypes.cast(self._memory, POINTER(c_uint8)), shape=(total,))
        at, moved = 0, {}
        for name, codes in self._codes.items():
            place = whole[at : at + codes.data.nbytes].reshape(codes.data.shape)
            place[:] = codes.data
            moved[codes.data.ctypes.data] = place.ctypes.data_as(POINTER(c_uint8))
            self._codes[name] = codes._replace(data=place)
            at += codes.data.nbytes
        for matrix in (each for part in (*self.layers, self.plan) for each in _matrices(part)):
            matrix.codes = moved[ctypes.addressof(matrix.codes.contents)]

    @property
    def codes(self) -> Mapping[str, Codes]:
        """The matrices by name, in the order of their use."""
        return self._codes

    @property
    def vectors(self) -> Sequence[NDArray[Any]]:
        """Every other array that a structure points to."""
        return self._arrays

    def _place(self, floats: int) -> int:
        at, self._floats = self._floats, self._floats + floats
        return at

    def _floats_of(self, name: str) -> Floats:
        """A parameter as float32."""
        return np.ascontiguousarray(dequantized(self._tensors[name]), dtype=np.float32)

    def _kept(self, array: Floats) -> Any:
        """A pointer to `array`, which is kept alive."""
        self._arrays.append(array)
        return array.ctypes.data_as(POINTER(c_float))

    def _vector(self, name: str, *, gate: bool = False) -> Any:
        """A pointer to a float32 parameter, or to its sigmoid; null where there is none."""
        if name not in self._tensors:
            return None
        value = self._floats_of(name).reshape(-1)
        return self._kept(sigmoid(value) if gate else value)

    def _scalar(self, name: str) -> float:
        """A parameter of one number."""
        return float(self._floats_of(name).reshape(()))

    def _matrix(self, name: str) -> Matrix:
        """A matrix (rows, cols); the blocks that loops share are laid out once."""
        if name not in self._tensors:
            return Matrix()
        if name not in self._codes:
            tensor = self._tensors[name]
            if id(tensor) not in self._known:
                self._known[id(tensor)] = encode(tensor)
            self._codes[name] = self._known[id(tensor)]
        return matrix_of(self._codes[name])

    def _layer(self, layer: VirtualLayer) -> Layer:
        model, block, scalars = self._source.model, layer.block, layer.scalars
        found = Layer(
            mixer=int(layer.mixer != "token-shift"),
            span=self._span(layer),
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
            found.carry = self._kept(self._floats_of("skip_weights")[layer.pop].copy())
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
        found.at_shift = self._place(self._source.model.dim)

    def _attention(self, found: Layer, layer: VirtualLayer, prefix: str) -> None:
        groups, width = self._source.model.attention.kv_heads, self._source.model.head_dim
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
            found.value_scale = self._scalar(f"ve_scales.{layer.index}")
        ring = -(-found.span // BLOCK) * BLOCK
        found.at_keys = self._place(groups * ring * width // 2)  # 16 bits each
        found.at_values = self._place(-(-groups * found.span * _padded(width) // 2))
        found.at_key_steps = self._place(groups * ring)
        found.at_value_steps = self._place(groups * ring)
        if self._source.model.attention.kv_shift:
            found.at_k_shift, found.at_v_shift = (
                self._place(groups * width),
                self._place(groups * width),
            )

    def _span(self, layer: VirtualLayer) -> int:
        """Positions that attention sees: a full layer's are the declared context."""
        return self._context if layer.mixer == "full" else layer.span

    def _plan(self) -> PlanStruct:
        model, plan = self._source.model, self._source
        frequencies = rotary_frequencies(model, self._context)
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
            **self._sizes,
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
        tied = self._source.model.tied
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
            found["bigram_scale"] = self._scalar("bigram.scale")
        return found


def _matrices(part: Layer | PlanStruct) -> Iterator[Matrix]:
    """The matrices of a structure that are there."""
    for field in part._fields_:
        if field[1] is Matrix and (matrix := getattr(part, field[0])).codes:
            yield matrix


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
