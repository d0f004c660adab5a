"""Plain compression of symbols, for tensors so regular that no adaptive table can follow.

They are constant, repeated or periodic. A section holds the symbols of chosen tensors, row by row,
as integers of 1, 2 or 4 bytes under the smallest of LZMA, Brotli and Zstandard. With all tensors in
it the payload cannot be larger than general compressors make the same codes, but for the section's
list of tensors. What a section expands to is bounded before it is expanded.
"""

from __future__ import annotations

import lzma
from collections.abc import Callable
from math import inf

import numpy as np
from numpy.typing import NDArray

from niblick.errors import ArtifactError
from niblick.files import expand

Ints = NDArray[np.int64]
_WIDTHS = (1, 2, 4)
_LARGEST_WINDOW = 1 << 26
_BYTES, _WORDS = (
    {"lc": 0, "lp": 0, "pb": 0},
    {"lc": 3, "lp": 0, "pb": 2},
)  # two ways LZMA can look at its input
_STEP = 64  # Brotli is fed in pieces, each of which can expand by a bounded amount.
# The adaptive tables beat the best general compressor by 4 to 29 % on trained weights. A tensor
# whose quick form is further from its price is left to them untried; a search for a size, which
# writes many times, looks less closely.
_UNLIKELY, _HOPELESS = 1.04, 0.98
_SMALL = 1 << 15  # bytes of symbols below which everything is tried


def smallest(raw: bytes) -> bytes:
    """The shortest of the compressed forms of `raw`, the kind's byte in front."""
    return min((bytes([kind]) + pack(raw) for kind, pack in enumerate(_PACKERS)), key=len)


def quick(raw: bytes) -> int:
    """A few percent to a quarter more than `smallest` would give, in a fraction of its time."""
    import brotli

    return len(brotli.compress(raw, quality=5, lgwin=24))


def as_bytes(symbols: Ints) -> tuple[int, bytes]:
    """(bytes per integer, little-endian integers) of a tensor's symbols."""
    largest = int(np.abs(symbols).max()) if symbols.size else 0
    width = next((width for width in _WIDTHS if largest < 1 << (8 * width - 1)), 0)
    assert width, "symbols are bounded by the grid"
    return width, symbols.astype(f"<i{width}").tobytes()


def write_plain(symbols: list[Ints]) -> bytes:
    """A section with the tensors given: their integers' widths, then all compressed as one."""
    forms = [as_bytes(entry) for entry in symbols]
    return bytes(width for width, _ in forms) + smallest(b"".join(raw for _, raw in forms))


def read_plain(section: bytes, shapes: list[tuple[int, int]]) -> list[Ints]:
    """Undo `write_plain` for tensors of `shapes` (R, C); `ArtifactError` for another section."""
    widths = list(section[: len(shapes)])
    if len(section) <= len(shapes) or not set(widths) <= set(_WIDTHS):
        raise ArtifactError("the plain symbols are damaged: their head is out of range")
    sizes = [width * rows * columns for width, (rows, columns) in zip(widths, shapes, strict=True)]
    kind, data, total = section[len(shapes)], section[len(shapes) + 1 :], sum(sizes)
    if kind >= len(_UNPACKERS):
        raise ArtifactError(
            f"the plain symbols have compression {kind}; this build reads 0 to"
            f" {len(_UNPACKERS) - 1}"
        )
    raw = _UNPACKERS[kind](data, total)
    if len(raw) != total:
        raise ArtifactError(f"the plain symbols do not expand to {total:,} bytes")
    found, at = [], 0
    for width, size, shape in zip(widths, sizes, shapes, strict=True):
        found.append(
            np.frombuffer(raw[at : at + size], dtype=f"<i{width}").astype(np.int64).reshape(shape)
        )
        at += size
    return found


def choices(symbols: list[Ints], prices: list[float], *, thorough: bool) -> list[list[bool]]:
    """Which tensors it may pay to put in a plain section; often none.

    `prices` are what the tables charge for each in bits. One choice are the tensors that are
    smaller one by one, another all of them, so that one may repeat another.
    """
    raws = [as_bytes(entry)[1] for entry in symbols]
    limit = _UNLIKELY if thorough else _HOPELESS
    if thorough and sum(map(len, raws)) < _SMALL:
        limit = inf
    each = [
        quick(raw) < limit * price / 8 and len(smallest(raw)) < price / 8
        for raw, price in zip(raws, prices, strict=True)
    ]
    every = quick(b"".join(raws)) < limit * sum(prices) / 8
    return ([each] if any(each) else []) + ([[True] * len(raws)] if every and not all(each) else [])


def _pack_lzma(raw: bytes, view: dict[str, int]) -> bytes:
    # The encoder's memory is a multiple of its window.
    window = min(max(1 << len(raw).bit_length(), 4096), _LARGEST_WINDOW)
    filters = [
        {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": window, **view}
    ]
    return lzma.compress(raw, format=lzma.FORMAT_RAW, filters=filters)


def _pack_brotli(raw: bytes) -> bytes:
    import brotli

    found: bytes = brotli.compress(raw, quality=11, lgwin=24)
    return found


def _pack_zstd(raw: bytes) -> bytes:
    import zstandard

    return zstandard.ZstdCompressor(level=22, write_content_size=False).compress(raw)


def _unpack_lzma(data: bytes, limit: int, view: dict[str, int]) -> bytes:
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": _LARGEST_WINDOW, **view}]
    decoder = lzma.LZMADecompressor(format=lzma.FORMAT_RAW, filters=filters)
    return expand(data, decoder, limit, "the section of plain symbols", ArtifactError)


def _unpack_brotli(data: bytes, limit: int) -> bytes:
    import brotli

    decoder, pieces, total = brotli.Decompressor(), [], 0
    try:
        for at in range(0, len(data), _STEP):
            pieces.append(decoder.process(data[at : at + _STEP]))
            total += len(pieces[-1])
            if total > limit:
                break
    except brotli.error as error:
        raise ArtifactError(f"the plain symbols are damaged: {error}") from None
    if total <= limit and not decoder.is_finished():
        raise ArtifactError("the plain symbols are damaged: their stream has no end")
    return b"".join(pieces)


def _unpack_zstd(data: bytes, limit: int) -> bytes:
    import zstandard

    decoder = zstandard.ZstdDecompressor(max_window_size=1 << 27)
    try:
        with decoder.stream_reader(data) as reader:
            raw = reader.read(limit + 1)
        if len(raw) > limit:
            return raw
        whole = decoder.decompressobj()  # which alone says where the frame ends
        whole.decompress(data)
    except zstandard.ZstdError as error:
        raise ArtifactError(f"the plain symbols are damaged: {error}") from None
    if not whole.eof or whole.unused_data:
        raise ArtifactError("the plain symbols are damaged: they are cut off, or longer")
    return raw


_PACKERS: tuple[Callable[[bytes], bytes], ...] = (
    lambda raw: _pack_lzma(raw, _BYTES),
    lambda raw: _pack_lzma(raw, _WORDS),
    _pack_brotli,
    _pack_zstd,
)
_UNPACKERS: tuple[Callable[[bytes, int], bytes], ...] = (
    lambda data, limit: _unpack_lzma(data, limit, _BYTES),
    lambda data, limit: _unpack_lzma(data, limit, _WORDS),
    _unpack_brotli,
    _unpack_zstd,
)
