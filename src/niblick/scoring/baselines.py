"""What general compressors reach on the same text, primed with the training text, measured and
cached by content.

bits per byte = 8 (size(train + validation) - size(train)) / bytes of validation.
"""

from __future__ import annotations

import hashlib
import json
import lzma
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import zstandard

from niblick.files import write_atomically

_JOIN = b"\n"
_VERSION = 1
LARGEST = 32_000_000  # bytes: larger texts take a compressor of this kind minutes


def compressor_baselines(train: bytes, held_out: bytes, cache: Path | None) -> dict[str, float]:
    """Compressor name -> bits per byte of `held_out`; read from `cache` where the same texts were
    measured.
    """
    key = hashlib.sha256(b"%d" % _VERSION + hashlib.sha256(train).digest() + held_out).hexdigest()
    path = cache / "baselines" / f"{key}.json" if cache else None
    if path is not None and path.is_file():
        return {
            str(name): float(value) for name, value in json.loads(path.read_text("utf-8")).items()
        }
    found = {name: _primed(size, train, held_out) for name, size in compressors().items()}
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, (json.dumps(found).encode(),))
    return found


@dataclass(frozen=True)
class Joined:
    """Documents as one text for a compressor, a line feed after each; `cut`: some are missing."""

    text: bytes
    cut: bool


def take_documents(texts: Iterable[str], largest: int) -> Joined:
    """Documents in order, as many as fit into `largest` bytes."""
    parts: list[bytes] = []
    size = 0
    for text in texts:
        part = text.encode() + _JOIN
        if size + len(part) > largest:
            return Joined(b"".join(parts), True)
        parts.append(part)
        size += len(part)
    return Joined(b"".join(parts), False)


def _primed(size: Callable[[bytes], int], train: bytes, held_out: bytes) -> float:
    return 8 * (size(train + held_out) - size(train)) / len(held_out)


def compressors() -> dict[str, Callable[[bytes], int]]:
    """Compressor name -> the size of a text under it; PPMd where pyppmd is installed."""
    found: dict[str, Callable[[bytes], int]] = {"xz -9e": _xz, "zstd -22": _zstd}
    try:
        import pyppmd
    except ImportError:
        return found
    found["PPMd order 16"] = lambda data: len(pyppmd.compress(data, max_order=16, mem_size=1 << 28))
    return found


def _xz(data: bytes) -> int:
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME}]
    return len(lzma.compress(data, format=lzma.FORMAT_XZ, filters=filters))


def _zstd(data: bytes) -> int:
    parameters = zstandard.ZstdCompressionParameters.from_level(22, window_log=27)
    return len(zstandard.ZstdCompressor(compression_params=parameters).compress(data))
