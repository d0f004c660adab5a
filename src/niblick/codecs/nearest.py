"""Rounding to nearest per row, in zlib streams: how `niblick.codecs.int_zlib` writes and reads.

Each quantized tensor is one zlib stream of codes and one of its rows' scales; the rest is one
stream of float16.

Row r of a weight (R, C) becomes code * scale[r] with codes in -m..m, m = 2^(bits-1) - 1, and scale
the row's largest magnitude over m, stored as float16. There is no floor on the scale, so small rows
keep their resolution.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from niblick.codecs.base import Encoded, Job, RoundingSpec, TensorRow, apportion, order0_bits
from niblick.codecs.quantized import Floats, QuantizedTensor, Tensor
from niblick.errors import ArtifactError
from niblick.files import expand
from niblick.plan import Parameter, Plan

_LENGTH = struct.Struct("<I")


def write_nearest(job: Job, specs: Mapping[str, RoundingSpec]) -> Encoded:
    """The payload and its account; parameters without a spec are float16."""
    chunks: list[bytes] = []
    rows: dict[str, TensorRow] = {}
    decoded: dict[str, Tensor] = {}
    parts = {"symbols": 0, "scales": 0, "values": 0}
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


def read_nearest(
    payload: bytes, specs: Mapping[str, RoundingSpec], plan: Plan
) -> dict[str, Tensor]:
    """The tensors of `write_nearest`; `ArtifactError` for a payload that it cannot have written."""
    reader = _Reader(payload)
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
