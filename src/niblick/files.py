"""Files read whole and checked, written whole or not at all, and locked by one process."""

from __future__ import annotations

import errno
import hashlib
import json
import lzma
import math
import os
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from niblick.errors import DataError, NiblickError
from niblick.limits import MAX_AMOUNT, MAX_JSON_BYTES, MAX_TEXT, cut, quoted

Record = TypeVar("Record")
# What reading a JSON value raises that is not of the shape its reader supposes.
MALFORMED = (ValueError, TypeError, LookupError, AttributeError, OverflowError)


def package_folder() -> Path:
    """Where this package's own files lie; `OSError` where its modules come from memory."""
    try:
        return Path(__file__).parent
    except NameError:
        raise FileNotFoundError(errno.ENOENT, "the package has no folder") from None


def write_atomically(path: Path, chunks: Iterable[bytes], *, durable: bool = True) -> None:
    """Write `chunks` to `path` through a temporary file beside it; `DataError` where that fails.

    What is `durable` survives a loss of power, for which the disk is waited for.
    """
    if not path.name:
        raise DataError(f"cannot write {str(path)!r}: it is a folder")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):  # a device or a pipe
            with path.open("wb") as there:
                there.writelines(chunks)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            for chunk in chunks:
                file.write(chunk)
            if durable:
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


def parse_json(text: str | bytes) -> Any:
    """The value that `text` spells; `ValueError` for anything else, nested too deeply included."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def finite(value: object) -> float | None:
    """A finite number as a float; None for anything else that JSON may hold."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; `DataError` where it is unreadable, too long or not an object."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_JSON_BYTES + 1)
        if len(data) > MAX_JSON_BYTES:
            raise ValueError(f"it is longer than {MAX_JSON_BYTES:,} bytes")
        value = parse_json(data)
    except OSError as error:
        raise DataError(f"cannot read {str(path)!r}: {error.strerror}") from None
    except ValueError as error:
        raise DataError(f"{str(path)!r} is not JSON: {cut(error, 120)}") from None
    if not isinstance(value, dict):
        raise DataError(f"{str(path)!r} holds a JSON {type(value).__name__}, not an object")
    return value


_FIELDS: dict[Any, tuple[str, Callable[[Any], bool]]] = {
    "int": ("a count", lambda v: type(v) is int and 0 <= v < 1 << 63),
    "float": ("a number", lambda v: type(v) in (int, float) and 0 <= v <= MAX_AMOUNT),
    "bool": ("true or false", lambda v: type(v) is bool),
    "str": ("text", lambda v: type(v) is str and len(v) <= MAX_TEXT and "\0" not in v),
}


def record(kind: type[Record], values: dict[str, Any], **given: Any) -> Record:
    """A dataclass from a JSON object: every field there, no other, each of its declared type.

    Counts are below 2^63, texts short and without NUL. Fields in `given` are taken as they are.
    `ValueError` names the first that is wrong.
    """
    declared = {field.name: field.type for field in fields(kind) if field.name not in given}  # type: ignore[arg-type]
    for name in sorted({*declared, *values}, key=str):
        if name not in declared or name not in values:
            raise ValueError(f"{quoted(name)} is {'missing' if name in declared else 'unknown'}")
        what, accepts = _FIELDS[declared[name]]
        if not accepts(values[name]):
            raise ValueError(f"{name} is {quoted(values[name])}, not {what}")
    return kind(**values, **given)
