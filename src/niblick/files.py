"""Files read whole and checked, written whole or not at all, and locked by one process."""

from __future__ import annotations

import errno
import hashlib
import json
import lzma
import os
import sys
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
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


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold the lock file `path`, in an existing folder, for the block; it stays there afterwards.

    The system frees the lock when its process ends, however it ends. While another holds it: waits,
    or without `wait` raises `BlockingIOError`. A file system that knows no locks gives none.
    """
    descriptor = _open_locked(path, wait)
    _LOCKS.add(descriptor)
    try:
        yield
    finally:
        if descriptor in _LOCKS:
            _LOCKS.remove(descriptor)
            os.close(descriptor)


_LOCKS: set[int] = set()


def _open_locked(path: Path, wait: bool) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(descriptor, wait)
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL):
                os.close(descriptor)
                if error.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
                    raise BlockingIOError(error.errno, "in use by another process") from None
                raise
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        os.close(descriptor)  # its holder removed it while this process opened it


def _release_in_child() -> None:
    """A forked child that outlives its parent must not keep what the parent held."""
    for descriptor in _LOCKS:
        with suppress(OSError):
            os.close(descriptor)
    _LOCKS.clear()


if sys.platform == "win32":
    import msvcrt
    import time

    def _lock(descriptor: int, wait: bool) -> None:
        while True:
            try:
                return msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
            except OSError:
                if not wait:
                    raise
                time.sleep(0.05)
else:
    import fcntl

    os.register_at_fork(after_in_child=_release_in_child)

    def _lock(descriptor: int, wait: bool) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))


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


def run_of(path: Path) -> Path | None:
    """The run directory that a file lies in, up to three folders deep."""
    folders = list(path.parents)[:3]
    return next((folder for folder in folders if (folder / "recipe.toml").is_file()), None)


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
