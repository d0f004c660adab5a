"""Bounded decoders of the packings scripts are wrapped in.

Every decoder is pure, never runs what it decodes, and yields at most `MAX_TEXT` bytes: a bomb stops
at the bound with `PackError` instead of filling memory.
"""

from __future__ import annotations

import base64
import binascii
import bz2
import codecs as std_codecs
import json
import lzma
import zlib
from collections.abc import Callable
from typing import Any

import brotli
import zstandard

MAX_TEXT = 16 * 1024 * 1024
_MAX_DICTIONARY = 64 * 1024 * 1024


class PackError(Exception):
    """A layer that cannot be decoded: damaged, too big when unpacked, or refused."""


def as_bytes(value: object) -> bytes:
    """Bytes of a bytes-like or ASCII text value; anything else is a `PackError`."""
    if isinstance(value, (bytes, bytearray)):
        return bytes(value)
    if isinstance(value, str):
        return value.encode("ascii", "strict")
    raise PackError(f"a payload of type {type(value).__name__}, expected bytes")


def _bounded(data: bytes, name: str) -> bytes:
    if len(data) > MAX_TEXT:
        raise PackError(f"{name} payload unpacks to more than {MAX_TEXT} bytes")
    return data


def _zlib(value: object, wbits: int = zlib.MAX_WBITS, *_: object) -> bytes:
    decoder = zlib.decompressobj(wbits)
    data = _bounded(decoder.decompress(as_bytes(value), MAX_TEXT + 1), "zlib")
    if not decoder.eof:
        raise PackError("zlib payload is incomplete")
    return data


def _gzip(value: object) -> bytes:
    return _zlib(value, 31)


def _bz2(value: object) -> bytes:
    decoder = bz2.BZ2Decompressor()
    data = _bounded(decoder.decompress(as_bytes(value), MAX_TEXT + 1), "bz2")
    if not decoder.eof:
        raise PackError("bz2 payload is incomplete")
    return data


def _lzma(
    value: object, format: int = lzma.FORMAT_AUTO, memlimit: object = None, filters: Any = None
) -> bytes:
    for item in filters or ():
        if int(item.get("dict_size", 0)) > _MAX_DICTIONARY:
            raise PackError(
                f"lzma dictionary of {item['dict_size']} bytes, at most {_MAX_DICTIONARY}"
            )
    limit = None if format == lzma.FORMAT_RAW else 8 * _MAX_DICTIONARY
    decoder = lzma.LZMADecompressor(format=format, memlimit=limit, filters=filters)
    data = _bounded(decoder.decompress(as_bytes(value), MAX_TEXT + 1), "lzma")
    if not decoder.eof and format != lzma.FORMAT_RAW:
        raise PackError("lzma payload is incomplete")
    return data


def _brotli(value: object) -> bytes:
    decoder = brotli.Decompressor()
    data = bytes(decoder.process(as_bytes(value), output_buffer_limit=MAX_TEXT + 1))
    _bounded(data, "brotli")
    if not decoder.is_finished():
        raise PackError("brotli payload is incomplete")
    return data


def _zstd(value: object, *_: object, **__: object) -> bytes:
    reader = zstandard.ZstdDecompressor(max_window_size=_MAX_DICTIONARY).stream_reader(
        as_bytes(value)
    )
    return _bounded(reader.read(MAX_TEXT + 1), "zstd")


def _a85(value: object, **options: Any) -> bytes:
    return base64.a85decode(as_bytes(value), **options)


def _decode(value: object, encoding: object = "utf-8", errors: object = "strict") -> object:
    name = str(encoding).lower().replace("-", "").replace("_", "")
    by_name: dict[str, Callable[[object], bytes]] = {
        "zlib": _zlib,
        "bz2": _bz2,
        "hex": DECODERS["bytes.fromhex"],
        "base64": DECODERS["base64.b64decode"],
        "zip": _zlib,
        "hexcodec": DECODERS["bytes.fromhex"],
        "base64codec": DECODERS["base64.b64decode"],
    }
    if name in by_name:
        return by_name[name](value)
    if name in {"rot13", "rot_13"} and isinstance(value, str):
        return std_codecs.decode(value, "rot13")
    return as_bytes(value).decode(str(encoding), str(errors))


def _json(value: object) -> object:
    text = bytes(value).decode("utf-8") if isinstance(value, (bytes, bytearray)) else value
    if not isinstance(text, str) or len(text) > MAX_TEXT:
        raise PackError("a JSON payload that is no text within the bound")
    return json.loads(text)


DECODERS: dict[str, Callable[..., Any]] = {
    "zlib.decompress": _zlib,
    "gzip.decompress": _gzip,
    "bz2.decompress": _bz2,
    "lzma.decompress": _lzma,
    "brotli.decompress": _brotli,
    "zstandard.decompress": _zstd,
    "zstd.decompress": _zstd,
    "base64.b85decode": lambda v: base64.b85decode(as_bytes(v)),
    "base64.a85decode": _a85,
    "base64.b64decode": lambda v, *a, **k: base64.b64decode(as_bytes(v)),
    "base64.decodebytes": lambda v: base64.b64decode(as_bytes(v)),
    "base64.standard_b64decode": lambda v: base64.b64decode(as_bytes(v)),
    "base64.urlsafe_b64decode": lambda v: base64.urlsafe_b64decode(as_bytes(v)),
    "base64.b32decode": lambda v, *a: base64.b32decode(as_bytes(v)),
    "base64.b16decode": lambda v, *a: base64.b16decode(as_bytes(v), True),
    "binascii.unhexlify": lambda v: binascii.unhexlify(as_bytes(v)),
    "binascii.a2b_hex": lambda v: binascii.unhexlify(as_bytes(v)),
    "binascii.a2b_base64": lambda v: binascii.a2b_base64(as_bytes(v)),
    "bytes.fromhex": lambda v: bytes.fromhex(as_bytes(v).decode("ascii")),
    "bytearray.fromhex": lambda v: bytes.fromhex(as_bytes(v).decode("ascii")),
    "codecs.decode": _decode,
    "json.loads": _json,
}
"""Dotted name of a standard or common decoder -> its bounded, non-executing equivalent."""
