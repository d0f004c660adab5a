"""The artifact container: magic, version, header, tokenizer, payload, digest; nothing executable.

    0   4  magic 93 4E 49 42            13  4  payload bytes
    4   1  version                      17  .. header (see `header`), tokenizer, payload
    5   4  header bytes                 -16 16 BLAKE2b-128 of everything before
    9   4  tokenizer bytes

Lengths must add up to the size of the file, so a truncated or extended one is refused before it is
read, and an altered byte anywhere before anything is interpreted. Opening a file opens no other.
"""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path
from typing import Any, NamedTuple

from niblick.artifact.header import MAX_HEADER, decode_header, encode_header
from niblick.errors import ArtifactError

MAGIC = b"\x93NIB"
VERSION = 1
MAX_TOKENIZER = 16_000_000
_PREFIX = struct.Struct("<4sBIII")
_DIGEST = 16
FIXED_BYTES = _PREFIX.size + _DIGEST


class Container(NamedTuple):
    """An artifact's sections: the header's JSON object, the tokenizer's bytes, the payload."""

    header: dict[str, Any]
    tokenizer: bytes
    payload: bytes


def build(header: dict[str, Any], tokenizer: bytes, payload: bytes) -> bytes:
    """The whole file; a pure function of its arguments."""
    packed = encode_header(header)
    prefix = _PREFIX.pack(MAGIC, VERSION, len(packed), len(tokenizer), len(payload))
    body = b"".join([prefix, packed, tokenizer, payload])
    return body + _digest(body)


def is_artifact(path: Path) -> bool:
    """Whether the file at `path` begins like an artifact."""
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def read(path: Path) -> Container:
    """Read and verify the artifact at `path`; `ArtifactError` says what is wrong with others."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(_PREFIX.size)
            lengths = _check_prefix(path, prefix, size)
            header, tokenizer, payload = (file.read(length) for length in lengths)
            digest = file.read(_DIGEST + 1)
    except OSError as error:
        raise ArtifactError(f"cannot read {str(path)!r}: {error.strerror}") from None
    if _digest(prefix, header, tokenizer, payload) != digest:
        raise ArtifactError(
            f"artifact {str(path)!r} is damaged: its checksum does not match its content"
        )
    return Container(decode_header(header), tokenizer, payload)


def _digest(*parts: bytes) -> bytes:
    digest = hashlib.blake2b(digest_size=_DIGEST)
    for part in parts:
        digest.update(part)
    return digest.digest()


def _check_prefix(path: Path, prefix: bytes, size: int) -> tuple[int, int, int]:
    if prefix[: len(MAGIC)] != MAGIC:
        raise ArtifactError(
            f"{str(path)!r} is not a niblick artifact: it begins with {prefix[:4]!r}"
        )
    if len(prefix) < _PREFIX.size:
        raise ArtifactError(f"artifact {str(path)!r} is truncated: {size:,} bytes")
    _, version, header, tokenizer, payload = _PREFIX.unpack(prefix)
    if version != VERSION:
        raise ArtifactError(
            f"artifact {str(path)!r} has container version {version}; this build reads {VERSION}"
        )
    if header > MAX_HEADER or tokenizer > MAX_TOKENIZER:
        raise ArtifactError(
            f"artifact {str(path)!r} declares a header or tokenizer beyond what is accepted"
        )
    expected = FIXED_BYTES + header + tokenizer + payload
    if expected != size:
        raise ArtifactError(
            f"artifact {str(path)!r} has {size:,} bytes where its lengths say {expected:,}"
        )
    return header, tokenizer, payload
