"""Reading a user's documents from .txt, .jsonl (field `text`) and .parquet (column `text`) files.

One .txt file is one document, unless it is longer than 16 KiB: then it is cut at blank lines into
documents of at least 4 KiB, so that a book can be split into training and held-out parts. Files are
read in order of their path.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from niblick.errors import DataError
from niblick.files import parse_json
from niblick.limits import cut, quoted

_LONG, _PART = 16_384, 4_096
_BLANK_LINES = re.compile(r"\n[ \t\r]*\n\s*")


def cut_text(text: str) -> list[str]:
    """`text` as documents: itself if short, else parts that end at blank lines and join to the
    whole.
    """
    if len(text) <= _LONG:
        return [text]
    parts, start = [], 0
    for match in _BLANK_LINES.finditer(text):
        if match.end() - start >= _PART and len(text) - match.end() >= _PART:
            parts.append(text[start : match.end()])
            start = match.end()
    return [*parts, text[start:]]


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except OSError as error:
        raise DataError(f"cannot read {str(path)!r}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise DataError(
            f"{str(path)!r} is not UTF-8: byte {error.start} is 0x{error.object[error.start]:02X}"
        ) from None


def _txt(path: Path) -> Iterator[str]:
    yield from cut_text(_read_text(path))


def _jsonl(path: Path) -> Iterator[str]:
    for number, line in enumerate(_read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = parse_json(line)
        except ValueError:
            raise DataError(f"{str(path)!r} line {number} is not JSON: {quoted(line)}") from None
        text = record.get("text") if isinstance(record, dict) else None
        if not isinstance(text, str):
            raise DataError(
                f"{str(path)!r} line {number} has no text in a field 'text': {quoted(line)}"
            )
        yield text


def _parquet(path: Path) -> Iterator[str]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise DataError(f"{str(path)!r} needs pyarrow: pip install 'niblick[parquet]'") from None
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            if "text" not in file.schema_arrow.names:
                names = ", ".join(file.schema_arrow.names)
                raise DataError(
                    f"{str(path)!r} has no column 'text'; its columns: {cut(names, 80)}"
                )
            for batch in file.iter_batches(columns=["text"]):
                yield from (
                    str(value) for value in batch.column(0).to_pylist() if value is not None
                )
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(
            f"{str(path)!r} is not a readable Parquet file: {cut(error, 120)}"
        ) from None


_READERS: dict[str, Callable[[Path], Iterator[str]]] = {
    ".txt": _txt,
    ".jsonl": _jsonl,
    ".parquet": _parquet,
}


def _hidden(path: Path, root: Path) -> bool:
    return path != root and any(part.startswith(".") for part in path.relative_to(root).parts)


def read_texts(path: Path) -> list[str]:
    """Every document of a text file or folder of text files, whatever a lone file is called."""
    if not path.exists():
        raise DataError(f"no text at {str(path)!r}")
    if path.is_file():
        return list(_READERS.get(path.suffix, _txt)(path))
    sorted_out, others = read_folder(path, ())
    assert not sorted_out
    return others


def holds_texts(path: Path) -> bool:
    """Whether `path` is a file, or a folder with text files in it."""
    return path.is_file() or any(
        file.suffix in _READERS and not _hidden(file, path) for file in path.rglob("*")
    )


def read_folder(root: Path, splits: tuple[str, ...]) -> tuple[dict[str, list[str]], list[str]]:
    """Documents under `root` (a folder or one file): those in folders named as `splits`, and all
    others.

    Raises `DataError` where some files are sorted by hand and others are not, or none is of a known
    kind.
    """
    files = [root] if root.is_file() else sorted(path for path in root.rglob("*") if path.is_file())
    files = [path for path in files if path.suffix in _READERS and not _hidden(path, root)]
    if not files:
        raise DataError(f"{str(root)!r} holds no {', '.join(_READERS)} files")
    by_hand: dict[str, list[str]] = {}
    others: list[str] = []
    for path in files:
        split = path.relative_to(root).parts[0] if path != root else ""
        target = by_hand.setdefault(split, []) if split in splits else others
        target.extend(_READERS[path.suffix](path))
    if by_hand and others:
        raise DataError(
            f"{str(root)!r} has documents both inside and outside of {', '.join(splits)} folders"
        )
    return by_hand, others
