"""The payload of the codec "rd": step, symbol stream, escapes, and where it pays a section of
plainly compressed symbols.

Reading checks every length and range before it is used, and a checksum over the decoded tensors
guards against a decoder that would differ.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from niblick.codecs.base import share
from niblick.codecs.matrices import from_matrix, matrix_shape, start
from niblick.codecs.plain import choices, read_plain, write_plain
from niblick.codecs.rounder import LARGEST_SYMBOL, Candidate
from niblick.codecs.symbols import Encoder, Tables
from niblick.codecs.tensor_stream import Bits, new_tables, open_decoder, read_values, write_tensor
from niblick.errors import ArtifactError
from niblick.model import Steps
from niblick.plan import Parameter, Plan, Role

Ints = NDArray[np.int64]
# Step (below 0: a section of plainly compressed symbols follows the streams), bytes of two streams,
# checksum.
_HEAD = struct.Struct("<fIII")
HEAD_BYTES = _HEAD.size


@dataclass(frozen=True)
class Written:
    """A candidate after entropy coding.

    `bits` are prices by tensor, `escapes` and `plain` bytes of those sections; `distance` is the
    share by which the coder's stream exceeds its model's entropy, `tables` what the coder has
    learnt.
    """

    payload: bytes
    bits: dict[str, Bits]
    escapes: int
    plain: int
    distance: float
    tables: Tables


def write_payload(candidate: Candidate, *, thorough: bool = True) -> Written:
    """Through the tables; then, where plain compression is smaller for some tensors or for all,
    once more with it.
    """
    adaptive = _write_with(candidate, [False] * len(candidate.parameters))
    symbols = [candidate.symbols[p.name] for p in candidate.parameters]
    prices = [
        adaptive.bits[p.name].symbols + adaptive.bits[p.name].models for p in candidate.parameters
    ]
    others = [
        _write_with(candidate, chosen) for chosen in choices(symbols, prices, thorough=thorough)
    ]
    return min([adaptive, *others], key=lambda written: len(written.payload))


def _write_with(candidate: Candidate, plain: list[bool]) -> Written:
    encoder, bits = Encoder(new_tables()), {}
    for parameter, apart in zip(candidate.parameters, plain, strict=True):
        grid, symbols = candidate.grids[parameter.name], candidate.symbols[parameter.name]
        bits[parameter.name] = write_tensor(encoder, parameter, grid, symbols, plain=apart)
    stream, escapes = encoder.finish()
    section = b""
    if any(plain):
        members = [p for p, apart in zip(candidate.parameters, plain, strict=True) if apart]
        section = np.packbits(plain, bitorder="little").tobytes()
        section += write_plain([candidate.symbols[p.name] for p in members])
        for p, size in zip(members, share(len(section), [p.size for p in members]), strict=True):
            bits[p.name] = replace(bits[p.name], symbols=8.0 * size)
    head = _HEAD.pack(
        -candidate.delta if section else candidate.delta,
        len(stream),
        len(escapes),
        _checksum(candidate.tensors),
    )
    coded = 8 * (len(stream) + len(escapes))
    return Written(
        head + stream + escapes + section,
        bits,
        len(escapes),
        len(section),
        coded / max(encoder.bits, 1.0) - 1,
        encoder.tables,
    )


def read_payload(payload: bytes, plan: Plan, steps: Steps | None = None) -> dict[str, Tensor]:
    """Grids and symbols to tensors; `ArtifactError` for a payload that is no such thing.

    `steps`, where given, receives what matrices are whole multiples of.
    """
    if len(payload) < _HEAD.size:
        raise ArtifactError("the payload ends before its head")
    delta, stream, escapes, checksum = _HEAD.unpack_from(payload)
    first, second = _HEAD.size + stream, _HEAD.size + stream + escapes
    if (
        second > len(payload)
        or (delta > 0) != (second == len(payload))
        or not 0 < abs(delta) < 1e30
    ):
        raise ArtifactError("the payload's lengths or its step are out of range")
    plain = _read_plain(payload[second:], plan) if delta < 0 else {}
    decoder = open_decoder(payload[_HEAD.size : first], payload[first:second], plan.parameter_count)
    found: dict[str, Tensor] = {}
    for parameter in plan.exported:
        grid, values = read_values(decoder, parameter, abs(delta), plain.get(parameter.name))
        found[parameter.name] = restore(parameter, values)
        if steps is not None and parameter.role in (Role.MATRIX, Role.EMBEDDING):
            steps[parameter.name] = grid.sides(abs(delta))
    decoder.finish()
    if _checksum(found) != checksum:
        raise ArtifactError("the decoded tensors do not match their checksum")
    return found


def _read_plain(section: bytes, plan: Plan) -> dict[str, Ints]:
    """The symbols of the tensors that the section's bit mask names."""
    size = -(-len(plan.exported) // 8)
    mask = np.unpackbits(np.frombuffer(section[:size], dtype=np.uint8), bitorder="little")
    if len(section) < size or mask[len(plan.exported) :].any():
        raise ArtifactError("the plain symbols are damaged: their list of tensors is out of range")
    members = [p for p, bit in zip(plan.exported, mask.tolist(), strict=False) if bit]
    found = read_plain(section[size:], [matrix_shape(p) for p in members])
    for parameter, symbols in zip(members, found, strict=True):
        if symbols.size and int(np.abs(symbols).max()) > LARGEST_SYMBOL:
            raise ArtifactError(f"the symbols of {parameter.name!r} are out of range")
    return {p.name: symbols for p, symbols in zip(members, found, strict=True)}


def restore(parameter: Parameter, values: NDArray[np.float32]) -> Tensor:
    """The tensor of a parameter from its dequantized matrix; `ArtifactError` for infinities and
    NaN.
    """
    if not np.isfinite(values).all():
        raise ArtifactError(f"tensor {parameter.name!r} decodes to values beyond float32")
    return from_matrix(parameter, torch.from_numpy(values)).add_(start(parameter))


def _checksum(tensors: dict[str, Tensor]) -> int:
    value = 0
    for tensor in tensors.values():
        # Adding zero makes one zero of two, so that equal numbers have equal bytes.
        value = zlib.crc32((tensor + 0.0).contiguous().numpy().data, value)
    return value
