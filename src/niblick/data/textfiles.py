"""Reading a user's documents from .txt, .md, .rst, .py, .html, .jsonl (field `text`; also .gz and
.zst) and .parquet (column `text`) files, and from standard input.

A file of plain text is one document; HTML is reduced to the text that a browser shows. Files are
read in order of their path.
"""

from __future__ import annotations

import gzip
import io
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import IO, Any, cast

from zstandard import ZstdDecompressor, ZstdError

from niblick.errors import DataError
from niblick.extras import needs
from niblick.files import parse_json
from niblick.limits import cut, quoted

LONG, _PART = 16_384, 4_096
_BLANK_LINES = re.compile(r"\n[ \t\r]*\n\s*")


def cut_text(text: str) -> list[str]:
    """`text` as documents: itself if short, else parts that end at blank lines and join to the
    whole.
    """
    if len(text) <= LONG:
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


def _plain(path: Path, _field: str) -> Iterator[str]:
    yield _read_text(path)


_SILENT = frozenset(("script", "style", "template", "noscript", "svg", "head"))
_IN_HEAD = _SILENT | {"base", "link", "meta", "title", "noframes"}
_INLINE = frozenset(
    (
        *("a", "abbr", "acronym", "b", "bdi", "bdo", "big", "cite", "code", "data", "del", "dfn"),
        *("em", "font", "i", "img", "input", "ins", "kbd", "label", "mark", "math", "q", "rp"),
        *("rt", "ruby", "s", "samp", "small", "span", "strike", "strong", "sub", "sup", "time"),
        *("tt", "u", "var", "wbr"),
    )
)


class _Shown(HTMLParser):
    """Collects the text outside of scripts and styles; block elements stand on lines of their
    own, and spaces are kept only inside <pre>.
    """

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.lines: list[str] = [""]
        self._silent: list[str] = []
        self._kept = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if self._silent[-1:] == ["head"] and tag not in _IN_HEAD:
            self._silent.pop()  # the tags that end a head may be left out
        if tag in _SILENT and not (tag == "head" and self._silent):
            self._silent.append(tag)
        elif tag == "body":
            self._silent.clear()  # a head may be left open
        self._kept += tag == "pre"
        if tag not in _INLINE:
            self.lines.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in self._silent:
            del self._silent[self._silent.index(tag) :]
        self._kept = max(0, self._kept - (tag == "pre"))
        if tag not in _INLINE:
            self.lines.append("")

    def handle_data(self, data: str) -> None:
        if self._silent:
            return
        if self._kept:
            first, *rest = data.split("\n")
            self.lines[-1] += first
            self.lines += rest
            return
        self.lines[-1] += re.sub(r"[ \t\r\n\f]+", " ", data)


def html_text(source: str) -> str:
    """The text that a browser shows of an HTML page, one block a line."""
    parser = _Shown()
    parser.feed(source)
    parser.close()
    lines = (re.sub(r"(?<=\S)  +", " ", line.rstrip()) for line in parser.lines)
    return "\n".join(line[1:] if line[:1] == " " != line[1:2] else line for line in lines if line)


def _html(path: Path, _field: str) -> Iterator[str]:
    yield html_text(_read_text(path))


class _Frames(io.RawIOBase):
    """What the Zstandard frames of a file expand to; `EOFError` where the last one has no end."""

    def __init__(self, packed: IO[bytes]) -> None:
        self._packed, self._waiting, self._ready = packed, b"", memoryview(b"")
        self._decoder: Any = None

    def readable(self) -> bool:
        """True."""
        return True

    def readinto(self, into: Any, /) -> int:
        """Fill `into` as far as the next stretch goes; 0 at the end."""
        while not self._ready:
            self._waiting = self._waiting or self._packed.read(1 << 12)
            if not self._waiting:
                if self._decoder is not None:
                    raise EOFError("its last frame has no end")
                return 0
            self._decoder = self._decoder or ZstdDecompressor().decompressobj()
            self._ready = memoryview(self._decoder.decompress(self._waiting))
            ended = self._decoder.eof
            self._waiting = self._decoder.unused_data if ended else b""
            self._decoder = None if ended else self._decoder
        size = min(len(into), len(self._ready))
        into[:size], self._ready = self._ready[:size], self._ready[size:]
        return size


@contextmanager
def open_lines(path: Path) -> Iterator[IO[bytes]]:
    """The bytes of `path`, expanded where its name ends in .gz or .zst; `DataError` where they are
    damaged.
    """
    try:
        if path.suffix.lower() == ".gz":
            with gzip.open(path) as file:
                yield cast(IO[bytes], file)
        elif path.suffix.lower() == ".zst":
            with path.open("rb") as packed:
                yield io.BufferedReader(_Frames(packed))
        else:
            with path.open("rb") as plain:
                yield plain
    except (EOFError, zlib.error, gzip.BadGzipFile, ZstdError) as error:
        raise DataError(f"{str(path)!r} is damaged or cut off: {cut(error, 120)}") from None
    except OSError as error:
        raise DataError(f"cannot read {str(path)!r}: {error.strerror or error}") from None


def read_json_line(line: bytes, place: str, field: str = "text") -> str | None:
    """The text of one line of JSON, None for a blank line; errors name its `place`."""
    if not line.strip():
        return None
    try:
        value = parse_json(line.decode().removeprefix("\ufeff"))
    except UnicodeDecodeError:
        raise DataError(f"{place} is not UTF-8") from None
    except ValueError:
        raise DataError(f"{place} is not JSON: {quoted(line.decode('utf-8', 'replace'))}") from None
    text = value.get(field) if isinstance(value, dict) else None
    if not isinstance(text, str):
        raise DataError(
            f"{place} has no text in a field {field!r}: {quoted(line.decode('utf-8', 'replace'))}"
        )
    return text


def _jsonl(path: Path, field: str) -> Iterator[str]:
    with open_lines(path) as file:
        for number, line in enumerate(file, 1):
            text = read_json_line(line, f"{str(path)!r} line {number}", field)
            if text is not None:
                yield text


@contextmanager
def open_parquet(path: Path, field: str) -> Iterator[Any]:
    """A `pyarrow.parquet.ParquetFile` that has a column `field` of text; `DataError` otherwise."""
    with needs(repr(str(path)), "data", DataError):
        import pyarrow
        import pyarrow.parquet
    try:
        with pyarrow.parquet.ParquetFile(path, memory_map=True) as file:
            if field not in file.schema_arrow.names:
                names = ", ".join(file.schema_arrow.names)
                raise DataError(
                    f"{str(path)!r} has no column {field!r}; its columns: {cut(names, 80)}"
                )
            if file.schema_arrow.names.count(field) > 1:
                raise DataError(f"{str(path)!r} has {field!r} as the name of several columns")
            kind = file.schema_arrow.field(field).type
            held = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
            if str(held) not in ("string", "large_string", "string_view"):
                raise DataError(f"column {field!r} of {str(path)!r} holds {kind}, not text")
            yield file
    except (OSError, UnicodeDecodeError, pyarrow.ArrowException) as error:
        raise DataError(
            f"{str(path)!r} is not a readable Parquet file: {cut(error, 120)}"
        ) from None


def read_parquet(path: Path, field: str, groups: range | None = None) -> Iterator[str]:
    """The texts of a Parquet file, or of some of its row groups, a row group in memory at a
    time.
    """
    with open_parquet(path, field) as file:
        for group in range(file.num_row_groups) if groups is None else groups:
            for batch in file.iter_batches(1024, row_groups=[group], columns=[field]):
                yield from (text for text in batch.column(0).to_pylist() if text is not None)


LINES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".json.gz", ".json.zst")


_READERS: dict[str, Callable[[Path, str], Iterator[str]]] = {
    **dict.fromkeys((".txt", ".md", ".rst", ".py"), _plain),
    **dict.fromkeys((".html", ".htm"), _html),
    **dict.fromkeys(LINES, _jsonl),
    ".parquet": read_parquet,
}


def is_hidden(path: Path, root: Path) -> bool:
    """Whether a name on the way from `root` to `path` begins with a dot."""
    return path != root and any(part.startswith(".") for part in path.relative_to(root).parts)


def kind_of(path: Path) -> str | None:
    """The ending that says how `path` is read, such as ".jsonl.gz"; None for an unknown one."""
    endings = "".join(path.suffixes[-2:]).lower(), path.suffix.lower()
    return next((ending for ending in endings if ending in _READERS), None)


def read_file(path: Path, field: str = "text") -> Iterator[str]:
    """The documents of one file; one of unknown kind is plain text."""
    return _READERS.get(kind_of(path) or "", _plain)(path, field)


def read_texts(path: Path) -> list[str]:
    """Every document of a text file or folder of text files, long ones cut (`cut_text`).

    A lone file may be called anything.
    """
    if not path.exists():
        raise DataError(f"no text at {str(path)!r}")
    _, others, _ = read_folder(path, ())
    return [part for text in others for part in cut_text(text)]


def holds_texts(path: Path) -> bool:
    """Whether `path` is a file, or a folder with text files in it."""
    return path.is_file() or any(
        kind_of(file) and not is_hidden(file, path) for file in path.rglob("*")
    )


@dataclass(frozen=True)
class Listing:
    """Text files under `root`, in order of their path, by the split their folder names ("" where
    there are no such folders), and in words which files are no text.
    """

    root: Path
    files: tuple[tuple[str, Path], ...]
    passed_over: str


def list_files(root: Path, splits: tuple[str, ...]) -> Listing:
    """What is to be read under `root`, a folder or one file.

    Raises `DataError` where some files are sorted by hand and others are not, or none is of a known
    kind.
    """
    there = [root] if root.is_file() else sorted(path for path in root.rglob("*") if path.is_file())
    files = [path for path in there if not is_hidden(path, root)]
    known = [path for path in files if path == root or kind_of(path)]
    if not known:
        raise DataError(f"{str(root)!r} holds no {', '.join(_READERS)} files")
    folders = ["" if path == root else path.relative_to(root).parts[0] for path in known]
    named = [folder if folder in splits else "" for folder in folders]
    if len({bool(split) for split in named}) == 2:
        raise DataError(
            f"{str(root)!r} has documents both inside and outside of {', '.join(splits)} folders"
        )
    return Listing(root, tuple(zip(named, known, strict=True)), _passed_over(files, known))


def read_folder(
    root: Path, splits: tuple[str, ...], field: str = "text"
) -> tuple[dict[str, list[str]], list[str], str]:
    """Documents under `root` (a folder or one file): those in folders named as `splits`, all
    others, and in words which files are no text. Errors are those of `list_files`.
    """
    listing = list_files(root, splits)
    by_hand: dict[str, list[str]] = {}
    others: list[str] = []
    for split, path in listing.files:
        target = by_hand.setdefault(split, []) if split else others
        target.extend(read_file(path, field))
    return by_hand, others, listing.passed_over


def _passed_over(files: list[Path], known: list[Path]) -> str:
    """Such as "3 .png, 1 .csv"; empty where every file was read."""
    kinds = Counter(path.suffix or path.name for path in files)
    kinds.subtract(path.suffix or path.name for path in known)
    named = [f"{count:,} {cut(kind, 20)}" for kind, count in kinds.most_common(4) if count]
    rest = sum(kinds.values()) - sum(count for _, count in kinds.most_common(4))
    return ", ".join([*named, f"{rest:,} other"] if rest else named)
