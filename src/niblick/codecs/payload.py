"""The rate-distortion codec's payload: step, symbol stream, escapes, plainly compressed symbols.

Reading checks every length and range before it is used, and a checksum over the decoded tensors
guards against a decoder that would differ.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from niblick.codecs.base import apportion
from niblick.codecs.grid import restore
from niblick.codecs.matrices import matrix_shape
from niblick.codecs.plain import choices, read_plain, write_plain
from niblick.codecs.quantized import Tensor, Tensors, dequantized
from niblick.codecs.symbols import Encoder, Tables
from niblick.codecs.tensor_stream import (
    LARGEST_SYMBOL,
    Bits,
    new_tables,
    open_decoder,
    read_tensor,
    write_tensor,
)
from niblick.errors import ArtifactError
from niblick.plan import Plan

if TYPE_CHECKING:
    from niblick.codecs.rounder import Candidate

Ints = NDArray[np.int64]
# Step (below 0: a section of plainly compressed symbols follows the streams), bytes of two streams,
# checksum.
_HEAD = struct.Struct("<fIII")
HEAD_BYTES = _HEAD.size


class Written(NamedTuple):
    """A candidate after entropy coding.

    `bits` are prices by tensor, `escapes` and `plain` bytes of those sections; `coder_overhead` is
    by what fraction the coder's stream exceeds its model's entropy, `tables` what the coder has
    learnt.
    """

    payload: bytes
    bits: dict[str, Bits]
    escapes: int
    plain: int
    coder_overhead: float
    tables: Tables


def write_payload(candidate: Candidate, *, thorough: bool = True) -> Written:
    """The smallest of the payloads with no tensor, some or all compressed plainly."""
    members = candidate.members
    adaptive = _write_with(candidate, [False] * len(members))
    prices = [bits.symbols + bits.models for bits in adaptive.bits.values()]
    plain = choices([member.symbols for member in members], prices, thorough=thorough)
    others = [_write_with(candidate, chosen) for chosen in plain]
    return min([adaptive, *others], key=lambda written: len(written.payload))


def _write_with(candidate: Candidate, plain: list[bool]) -> Written:
    encoder, bits = Encoder(new_tables()), {}
    for member, apart in zip(candidate.members, plain, strict=True):
        name = member.parameter.name
        bits[name] = write_tensor(
            encoder, member.parameter, member.grid, member.symbols, plain=apart
        )
    stream, escapes = encoder.finish()
    section = b""
    if any(plain):
        chosen = [m for m, apart in zip(candidate.members, plain, strict=True) if apart]
        section = np.packbits(plain, bitorder="little").tobytes()
        section += write_plain([member.symbols for member in chosen])
        sizes = apportion(len(section), [member.parameter.size for member in chosen])
        for member, size in zip(chosen, sizes, strict=True):
            name = member.parameter.name
            bits[name] = bits[name]._replace(symbols=8.0 * size)
    delta = -candidate.delta if section else candidate.delta
    head = _HEAD.pack(delta, len(stream), len(escapes), _checksum(candidate.tensors))
    overhead = 8 * (len(stream) + len(escapes)) / max(encoder.bits, 1.0) - 1
    payload = head + stream + escapes + section
    return Written(payload, bits, len(escapes), len(section), overhead, encoder.tables)


def read_payload(payload: bytes, plan: Plan) -> dict[str, Tensor]:
    """Grids and symbols to tensors; `ArtifactError` for a payload that is no such thing."""
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
        grid, levels = read_tensor(decoder, parameter, plain.get(parameter.name))
        found[parameter.name] = restore(parameter, grid, levels, abs(delta))
    decoder.finish()
    if _checksum(found, decoder.dequantized) != checksum:
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


def _checksum(
    tensors: Tensors, values_of: Callable[[Tensor], NDArray[np.float32]] = dequantized
) -> int:
    """CRC-32 over the float32 values; `ArtifactError` for infinities and NaN."""
    total = 0
    for name, tensor in tensors.items():
        values = values_of(tensor)
        if not np.isfinite(values).all():
            raise ArtifactError(f"tensor {name!r} decodes to values beyond float32")
        total = zlib.crc32(np.ascontiguousarray(values).data, total)
    return total
