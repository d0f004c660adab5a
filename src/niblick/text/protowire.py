"""The little of the protocol-buffer wire format that a SentencePiece `.model` file needs.

Reading is bounds-checked: a truncated or nonsensical message raises `DataError`, never reads past
its end.
"""

from __future__ import annotations

from collections.abc import Iterator

from niblick.errors import DataError

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
_WIDTH = {FIXED64: 8, FIXED32: 4}
Field = tuple[int, int, int | bytes]


def encode_varint(value: int) -> bytes:
    """Base-128 encoding of a non-negative integer, least significant group first."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def decode_varint(data: bytes, at: int) -> tuple[int, int]:
    """The integer that starts at `at`, and the position after it."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise DataError(f"the tokenizer ends inside a number, at byte {at}")
        value |= (data[at] & 0x7F) << shift
        at += 1
        if data[at - 1] < 0x80:
            return value, at
    raise DataError(f"the tokenizer holds a number of more than 10 bytes, at byte {at}")


def read_fields(data: bytes) -> Iterator[Field]:
    """(number, wire type, value) of each field of one message; an int for varints, bytes
    otherwise.
    """
    at = 0
    while at < len(data):
        key, at = decode_varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == VARINT:
            value, at = decode_varint(data, at)
            yield number, wire, value
            continue
        if wire == BYTES:
            width, at = decode_varint(data, at)
        elif wire in _WIDTH:
            width = _WIDTH[wire]
        else:
            raise DataError(
                f"the tokenizer has wire type {wire} at byte {at}; it is not a SentencePiece model"
            )
        if at + width > len(data):
            raise DataError(
                f"the tokenizer is truncated: a field of {width} bytes at byte {at} of {len(data)}"
            )
        yield number, wire, data[at : at + width]
        at += width


def write_field(number: int, wire: int, value: int | bytes) -> bytes:
    """One field as `read_fields` gives it."""
    key = encode_varint(number << 3 | wire)
    if isinstance(value, int):
        return key + encode_varint(value)
    return key + (encode_varint(len(value)) if wire == BYTES else b"") + value
