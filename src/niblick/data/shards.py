"""Shard files: 256 little-endian int32 header words (magic, version, token count), then uint16
token ids.

A file whose size is not exactly 1024 + 2n bytes is never opened.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from niblick.errors import DataError
from niblick.files import write_atomically

MAGIC, VERSION = 20240520, 1
HEADER_BYTES = 1024
_MAX_TOKENS = 2**31 - 1


class ShardError(DataError):
    """A shard file that is missing, truncated or not a shard."""


def write_shard(path: Path, tokens: ArrayLike) -> None:
    """Write `tokens` (one dimension, each below 65,536) as a shard, atomically."""
    array = np.asarray(tokens)
    if array.ndim != 1 or len(array) > _MAX_TOKENS:
        raise ShardError(
            f"a shard holds one row of at most {_MAX_TOKENS:,} tokens, not shape {array.shape}"
        )
    if len(array) and not (array.min() >= 0 and array.max() < 65536):
        raise ShardError(
            f"token ids {array.min()} to {array.max()} do not fit a shard; 0 to 65,535 do"
        )
    write_atomically(path, (shard_header(len(array)), array.astype("<u2").tobytes()))


def shard_header(count: int) -> bytes:
    """What precedes `count` tokens; `ShardError` where a shard cannot hold so many."""
    if count > _MAX_TOKENS:
        raise ShardError(f"a shard holds at most {_MAX_TOKENS:,} tokens, not {count:,}")
    header = np.zeros(256, dtype="<i4")
    header[:3] = MAGIC, VERSION, count
    return header.tobytes()


def count_tokens(path: Path) -> int:
    """Number of tokens in the shard at `path`; raises `ShardError` unless header and size are
    right.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header = file.read(HEADER_BYTES)
    except OSError as error:
        raise ShardError(f"shard {str(path)!r} cannot be read: {error.strerror}") from None
    if len(header) < HEADER_BYTES:
        raise ShardError(
            f"shard {str(path)!r} has {size} bytes; its header alone takes {HEADER_BYTES}"
        )
    magic, version, count = (int(word) for word in np.frombuffer(header, dtype="<i4", count=3))
    if (magic, version) != (MAGIC, VERSION):
        raise ShardError(
            f"{str(path)!r} is not a shard: it begins {magic}, {version}, a shard {MAGIC},"
            f" {VERSION}"
        )
    if count < 0 or size != HEADER_BYTES + 2 * count:
        raise ShardError(
            f"shard {str(path)!r} has {size:,} bytes, but {count:,} tokens take"
            f" {HEADER_BYTES + 2 * count:,}"
        )
    return count


def open_shard(path: Path) -> NDArray[np.uint16]:
    """The tokens of a validated shard as a read-only memory map (an empty array where there are
    none).
    """
    count = count_tokens(path)
    if not count:
        return np.empty(0, dtype="<u2")
    try:
        return np.memmap(path, dtype="<u2", mode="r", offset=HEADER_BYTES, shape=(count,))
    except (OSError, ValueError) as error:
        raise ShardError(f"shard {str(path)!r} cannot be mapped: {error}") from None


def read_tokens(path: Path, start: int, count: int) -> NDArray[np.uint16]:
    """`count` tokens from `start`, read by position; a file that shrank meanwhile is a
    `ShardError`.

    (Touching a map of a file that shrank would end the process with a bus error.)
    """
    try:
        found = np.fromfile(path, dtype="<u2", count=count, offset=HEADER_BYTES + 2 * start)
    except (OSError, ValueError) as error:
        raise ShardError(f"shard {str(path)!r} cannot be read: {error}") from None
    if len(found) != count:
        raise ShardError(
            f"shard {str(path)!r} ends before token {start + count:,}: it changed while it was read"
        )
    return found
