"""The codec "int-zlib": rounding to nearest per row, codes in zlib; everything else float16.

Matrices take `artifact.matrix_bits`, embeddings `artifact.embedding_bits`; convolutions, vectors
and scalars are float16. Each quantized tensor is one zlib stream of codes and one of its rows'
scales; the rest is one stream.

Row r of a weight (R, C) becomes code * scale[r] with codes in -m..m, m = 2^(bits-1) - 1, and scale
the row's largest magnitude over m, stored as float16. There is no floor on the scale, so small rows
keep their resolution.
"""

from __future__ import annotations

import struct
import zlib
from math import log2
from typing import Any

import numpy as np
from numpy.typing import NDArray

from niblick.codecs.base import (
    CODECS,
    Codec,
    Encoded,
    Job,
    RoundingSpec,
    Sizes,
    TensorRow,
    apportion,
    order0_bits,
)
from niblick.codecs.quantized import Floats, QuantizedTensor, Tensor
from niblick.errors import ArtifactError
from niblick.files import expand
from niblick.plan import Parameter, Plan, Role
from niblick.recipe import Recipe

_LENGTH = struct.Struct("<I")


class IntZlib(Codec):
    """Round to nearest per row and zlib: simple, needs no data, and what late QAT trains for."""

    name = "int-zlib"

    def encode(self, job: Job) -> Encoded:
        """One quality only: the recipe's bits; a budget is for the caller to compare with."""
        chunks: list[bytes] = []
        rows: dict[str, TensorRow] = {}
        decoded: dict[str, Tensor] = {}
        parts = {"symbols": 0, "scales": 0, "values": 0}
        specs = self.rounding(job.recipe, job.plan)
        for name, spec in specs.items():
            weight = job.tensors[name]
            codes, scales = quantize(weight, spec)
            if not np.isfinite(scales).all():
                _refuse(name, float(np.abs(weight).max()) / spec.limit)
            streams = _stream(codes.tobytes()), _stream(scales.tobytes())
            chunks += streams
            parts["symbols"] += len(streams[0])
            parts["scales"] += len(streams[1])
            rows[name] = TensorRow(sum(map(len, streams)), weight.size, order0_bits(codes))
            decoded[name] = quantized(weight.shape, codes, scales)
        rest = [p for p in job.plan.exported if p.name not in specs]
        halves = {p.name: _to_float16(p.name, job.tensors[p.name]) for p in rest}
        values = _stream(b"".join(half.tobytes() for half in halves.values()))
        parts["values"] = len(values)
        sizes = apportion(len(values), [p.size for p in rest])
        for parameter, size in zip(rest, sizes, strict=True):
            rows[parameter.name] = TensorRow(size, parameter.size)
            decoded[parameter.name] = halves[parameter.name].astype(np.float32)
        ordered = {p.name: decoded[p.name] for p in job.plan.exported}
        return Encoded(b"".join([*chunks, values]), parts, rows, ordered, {"quantizer": "nearest"})

    def decode(self, payload: bytes, recipe: Recipe, plan: Plan) -> dict[str, Tensor]:
        """The tensors of `encode`."""
        reader, specs = _Reader(payload), self.rounding(recipe, plan)
        shapes = {p.name: p for p in plan.exported}
        found: dict[str, Tensor] = {
            name: _read_rows(reader, shapes[name], spec) for name, spec in specs.items()
        }
        rest = [p for p in plan.exported if p.name not in specs]
        raw = reader.stream(2 * sum(p.size for p in rest), "the float16 values")
        values, at = np.frombuffer(raw, dtype="<f2"), 0
        reader.finish()
        if not np.isfinite(values).all():
            raise ArtifactError("the float16 values are not finite")
        for p in rest:
            found[p.name] = values[at : at + p.size].astype(np.float32).reshape(p.shape)
            at += p.size
        return {p.name: found[p.name] for p in plan.exported}

    def sizes(self, recipe: Recipe, plan: Plan, other: int) -> Sizes:
        """One byte a code at most; about log2(4.13 m / 3.1) bits of a Gaussian row's codes."""
        specs, bound, estimate, rest = self.rounding(recipe, plan), 0, 0.0, 0
        for p in plan.exported:
            if p.name not in specs:
                rest += p.size
                continue
            bound += _stored(p.size) + _stored(2 * p.shape[0])
            entropy = max(log2(4.13 * specs[p.name].limit / 3.1), 1.0)
            estimate += (entropy + 0.15) / 8 * p.size + 1.7 * p.shape[0]
        return bound + _stored(2 * rest), round(estimate + 1.8 * rest)

    def rounding(self, recipe: Recipe, plan: Plan) -> dict[str, RoundingSpec]:
        """Per-row rounding of every matrix and embedding, with the recipe's bits."""
        artifact = recipe.artifact
        bits = {Role.MATRIX: artifact.matrix_bits, Role.EMBEDDING: artifact.embedding_bits}
        return {p.name: RoundingSpec(bits[p.role]) for p in plan.exported if p.role in bits}

    def describe(self, recipe: Recipe) -> dict[str, dict[str, Any]]:
        """The codec by its own name, zlib with the bits of both roles."""
        artifact = recipe.artifact
        bits = {"matrix_bits": artifact.matrix_bits, "embedding_bits": artifact.embedding_bits}
        return super().describe(recipe) | {"compression": {"name": "zlib", **bits}}


def quantize(weight: Floats, spec: RoundingSpec) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """Codes (R, C) and scales (R,) of `weight` (R, ...); rows of zeros get scale 0.

    `compression.rounding` does the same in torch while training.
    """
    rows = weight.reshape(weight.shape[0], -1)
    limit = np.float32(spec.limit)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        scales = (np.abs(rows).max(axis=1, initial=0) / limit).astype("<f2")
        wide = scales.astype(np.float32)[:, None]
        codes = np.where(wide > 0, np.rint(rows / wide), 0)
    return np.clip(codes, -limit, limit).astype(np.int8), scales


def quantized(
    shape: tuple[int, ...], codes: NDArray[np.int8], scales: NDArray[np.float16]
) -> QuantizedTensor:
    """The tensor of `shape` that codes (R, C) and scales (R,) mean."""
    return QuantizedTensor(shape=shape, codes=codes, row_steps=scales.astype(np.float64))


def _to_float16(name: str, tensor: Floats) -> NDArray[np.float16]:
    with np.errstate(over="ignore"):
        half = tensor.astype("<f2")
    if not np.isfinite(half).all():
        _refuse(name, float(np.abs(tensor).max()))
    return half


def _refuse(name: str, worst: float) -> None:
    raise ArtifactError(f"tensor {name!r} holds {worst:g}, beyond what float16 can store (65504)")


class _Reader:
    """Takes length-prefixed zlib streams off a payload, whose sizes are checked before use."""

    def __init__(self, payload: bytes) -> None:
        self._payload, self._at = payload, 0

    def stream(self, size: int, what: str) -> bytes:
        """The next stream, which must expand to exactly `size` bytes."""
        start = self._at + _LENGTH.size
        if start > len(self._payload):
            raise ArtifactError(f"the payload ends before {what}")
        (length,) = _LENGTH.unpack_from(self._payload, self._at)
        if start + length > len(self._payload):
            raise ArtifactError(f"{what} claims {length:,} bytes, more than the payload holds")
        self._at = start + length
        data, decoder = self._payload[start : self._at], zlib.decompressobj()
        raw = expand(data, decoder, size, what, ArtifactError)
        if len(raw) != size:
            raise ArtifactError(f"{what} does not expand to {size:,} bytes")
        return raw

    def finish(self) -> None:
        """Refuse bytes behind the last stream."""
        if self._at != len(self._payload):
            raise ArtifactError(f"the payload has {len(self._payload) - self._at:,} bytes too many")


def _read_rows(reader: _Reader, parameter: Parameter, spec: RoundingSpec) -> QuantizedTensor:
    rows = parameter.shape[0]
    raw = reader.stream(parameter.size, f"tensor {parameter.name!r}")
    codes = np.frombuffer(raw, dtype=np.int8).reshape(rows, parameter.size // max(rows, 1))
    if codes.size and (int(codes.max()) > spec.limit or int(codes.min()) < -spec.limit):
        raise ArtifactError(f"tensor {parameter.name!r} holds codes beyond {spec.limit}")
    scale_bytes = reader.stream(2 * rows, f"the scales of {parameter.name!r}")
    scales = np.frombuffer(scale_bytes, dtype="<f2")
    if not np.isfinite(scales).all():
        raise ArtifactError(f"the scales of {parameter.name!r} are not finite")
    return quantized(parameter.shape, codes, scales)


def _stream(raw: bytes) -> bytes:
    packed = zlib.compress(raw, 9)
    return _LENGTH.pack(len(packed)) + packed


def _stored(size: int) -> int:
    """Bytes of a length-prefixed zlib stream that did not compress."""
    return size + 5 * (size // 16_000 + 1) + 12


CODECS.register("int-zlib")(IntZlib())
