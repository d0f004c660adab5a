"""Reading a user's documents from .txt, .md, .rst, .py, .html, .jsonl (field `text`) and .parquet
(column `text`) files, and from standard input.

A file of plain text is one document; HTML is reduced to the text that a browser shows. Files are
read in order of their path.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path

from niblick.errors import DataError
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


def _plain(path: Path) -> Iterator[str]:
    yield _read_text(path)


_SILENT = frozenset(("script", "style", "template", "noscript", "svg", "head"))
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


def _html(path: Path) -> Iterator[str]:
    yield html_text(_read_text(path))


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
    **dict.fromkeys((".txt", ".md", ".rst", ".py"), _plain),
    **dict.fromkeys((".html", ".htm"), _html),
    ".jsonl": _jsonl,
    ".parquet": _parquet,
}


def _hidden(path: Path, root: Path) -> bool:
    return path != root and any(part.startswith(".") for part in path.relative_to(root).parts)


def _reader(path: Path) -> Callable[[Path], Iterator[str]]:
    return _READERS.get(path.suffix.lower(), _plain)


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
        file.suffix.lower() in _READERS and not _hidden(file, path) for file in path.rglob("*")
    )


def read_folder(root: Path, splits: tuple[str, ...]) -> tuple[dict[str, list[str]], list[str], str]:
    """Documents under `root` (a folder or one file): those in folders named as `splits`, all
    others, and in words which files are no text.

    Raises `DataError` where some files are sorted by hand and others are not, or none is of a known
    kind.
    """
    there = [root] if root.is_file() else sorted(path for path in root.rglob("*") if path.is_file())
    files = [path for path in there if not _hidden(path, root)]
    known = [path for path in files if path == root or path.suffix.lower() in _READERS]
    if not known:
        raise DataError(f"{str(root)!r} holds no {', '.join(_READERS)} files")
    by_hand: dict[str, list[str]] = {}
    others: list[str] = []
    for path in known:
        split = path.relative_to(root).parts[0] if path != root else ""
        target = by_hand.setdefault(split, []) if split in splits else others
        target.extend(_reader(path)(path))
    if by_hand and others:
        raise DataError(
            f"{str(root)!r} has documents both inside and outside of {', '.join(splits)} folders"
        )
    return by_hand, others, _passed_over(files, known)


def _passed_over(files: list[Path], known: list[Path]) -> str:
    """Such as "3 .png, 1 .csv"; empty where every file was read."""
    kinds = Counter(path.suffix or path.name for path in files)
    kinds.subtract(path.suffix or path.name for path in known)
    named = [f"{count:,} {cut(kind, 20)}" for kind, count in kinds.most_common(4) if count]
    rest = sum(kinds.values()) - sum(count for _, count in kinds.most_common(4))
    return ", ".join([*named, f"{rest:,} other"] if rest else named)
