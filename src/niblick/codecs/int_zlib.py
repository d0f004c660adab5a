"""The codec "int-zlib": rounding to nearest per row by role, codes in zlib; everything else
float16.

Matrices take `artifact.matrix_bits`, embeddings `artifact.embedding_bits`; convolutions, vectors
and scalars are float16. Each quantized tensor is one zlib stream of codes and its rows' scales; the
rest is one stream.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from niblick.codecs.base import CODECS, Encoded, Job, TensorRow, share
from niblick.codecs.entropy import order0_bits
from niblick.compression.rounding import RoundingSpec, dequantize, quantize, row_specs, to_float16
from niblick.errors import ArtifactError
from niblick.model import Steps
from niblick.plan import Parameter, Plan
from niblick.recipe import Recipe

_LENGTH = struct.Struct("<I")


class _Reader:
    """Takes length-prefixed zlib streams off a payload; every declared size is checked before it is
    used.
    """

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
        decoder = zlib.decompressobj()
        try:
            raw = decoder.decompress(self._payload[start : self._at], size + 1)
        except zlib.error as error:
            raise ArtifactError(f"{what} is damaged: {error}") from None
        if len(raw) != size or decoder.unused_data or decoder.unconsumed_tail or not decoder.eof:
            raise ArtifactError(f"{what} does not expand to {size:,} bytes")
        return raw

    def finish(self) -> None:
        """Refuse bytes behind the last stream."""
        if self._at != len(self._payload):
            raise ArtifactError(f"the payload has {len(self._payload) - self._at:,} bytes too many")


def _stream(raw: bytes) -> bytes:
    packed = zlib.compress(raw, 9)
    return _LENGTH.pack(len(packed)) + packed


@dataclass(frozen=True)
class IntZlib:
    """Round to nearest per row and zlib: simple, needs no data, and exactly what late QAT trains
    for.
    """

    name: str = "int-zlib"
    needs_calibration: bool = False

    def encode(self, job: Job) -> Encoded:
        """One quality only: the recipe's bits; a budget is for the caller to compare with."""
        specs = row_specs(job.recipe, job.plan)
        chunks: list[bytes] = []
        rows: dict[str, TensorRow] = {}
        decoded: dict[str, Tensor] = {}
        parts = {"symbols": 0, "scales": 0, "values": 0}
        for name, spec in specs.items():
            weight = job.tensors[name]
            codes, scale = quantize(weight, spec)
            to_float16(name, weight.abs().amax() / spec.limit if weight.numel() else weight)
            symbols, scales = _stream(codes.numpy().tobytes()), _stream(scale.numpy().tobytes())
            chunks += [symbols, scales]
            parts["symbols"] += len(symbols)
            parts["scales"] += len(scales)
            entropy = order0_bits(codes.numpy())
            rows[name] = TensorRow(len(symbols) + len(scales), weight.numel(), entropy)
            decoded[name] = dequantize(codes, scale, tuple(weight.shape))
        rest = [p for p in job.plan.exported if p.name not in specs]
        halves = {p.name: to_float16(p.name, job.tensors[p.name]) for p in rest}
        values = _stream(b"".join(half.numpy().tobytes() for half in halves.values()))
        parts["values"] = len(values)
        for parameter, size in zip(rest, share(len(values), [p.size for p in rest]), strict=True):
            rows[parameter.name] = TensorRow(size, parameter.size)
            decoded[parameter.name] = halves[parameter.name].float()
        ordered = {p.name: decoded[p.name] for p in job.plan.exported}
        return Encoded(b"".join([*chunks, values]), parts, rows, ordered, {"quantizer": "nearest"})

    def decode(
        self, payload: bytes, recipe: Recipe, plan: Plan, steps: Steps | None = None
    ) -> dict[str, Tensor]:
        """The tensors of `encode`, in plan order; their steps are plain to see, and not told."""
        reader, specs = _Reader(payload), row_specs(recipe, plan)
        shapes = {p.name: p for p in plan.exported}
        found = {name: _read_rows(reader, shapes[name], spec) for name, spec in specs.items()}
        rest = [p for p in plan.exported if p.name not in specs]
        raw = np.frombuffer(
            reader.stream(2 * sum(p.size for p in rest), "the float16 values"), dtype="<f2"
        )
        reader.finish()
        at = 0
        for parameter in rest:
            piece = raw[at : at + parameter.size].astype(np.float32).reshape(parameter.shape)
            found[parameter.name] = torch.from_numpy(piece)
            at += parameter.size
        return {p.name: found[p.name] for p in plan.exported}


def _read_rows(reader: _Reader, parameter: Parameter, spec: RoundingSpec) -> Tensor:
    rows = parameter.shape[0]
    raw = bytearray(reader.stream(parameter.size, f"tensor {parameter.name!r}"))
    codes = torch.frombuffer(raw, dtype=torch.int8).reshape(rows, -1)
    if bool((codes.short().abs() > spec.limit).any()):
        raise ArtifactError(f"tensor {parameter.name!r} holds codes beyond {spec.limit}")
    scale_bytes = bytearray(reader.stream(2 * rows, f"the scales of {parameter.name!r}"))
    scale = torch.frombuffer(scale_bytes, dtype=torch.float16)
    if not bool(torch.isfinite(scale).all()):
        raise ArtifactError(f"the scales of {parameter.name!r} are not finite")
    return dequantize(codes, scale, parameter.shape)


CODECS.register("int-zlib")(IntZlib())
