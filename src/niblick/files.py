"""Files read whole and checked, and written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import zlib
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from niblick.errors import DataError, NiblickError


def write_atomically(path: Path, chunks: Iterable[bytes]) -> None:
    """Write `chunks` to `path` through a temporary file beside it; `DataError` where that fails."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise DataError(f"cannot write {str(path)!r}: {error.strerror}") from None
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def expand(data: bytes, decoder: Any, limit: int, what: str, refusal: type[NiblickError]) -> bytes:
    """What a zlib or LZMA `decoder` makes of `data`: one whole stream of at most `limit` bytes.

    Raises `refusal` naming `what` for a stream that is damaged, longer, cut off, or followed by
    something.
    """
    try:
        raw: bytes = decoder.decompress(data, limit + 1)
        if not decoder.eof and len(raw) <= limit:
            raw += decoder.decompress(b"", 1)  # LZMA's end mark may still be unread
    except (zlib.error, lzma.LZMAError, EOFError) as error:
        raise refusal(f"{what} is damaged: {error}") from None
    if len(raw) > limit:
        raise refusal(f"{what} expands to more than {limit:,} bytes")
    if not decoder.eof or decoder.unused_data:
        raise refusal(f"{what} is truncated, or something follows it")
    return raw


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; `DataError` where it is unreadable or not an object."""
    try:
        value = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise DataError(f"cannot read {str(path)!r}: {error.strerror}") from None
    except ValueError as error:
        raise DataError(f"{str(path)!r} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise DataError(f"{str(path)!r} holds a JSON {type(value).__name__}, not an object")
    return value
