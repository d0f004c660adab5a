"""A corpus of any size as a list of units: parts of the input that are read one at a time.

A unit is some 32 MB: a few small files, a stretch of a large one that can be read from the middle
(lines, plain text, row groups of Parquet), or one compressed or remote file of any size, which is
read as a stream. The list is a function of the files alone, so that every process of every machine
finds the same one.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from niblick.data.fetch import HuggingFaceHub, RemoteFile
from niblick.data.textfiles import (
    LINES,
    cut_text,
    is_hidden,
    kind_of,
    list_files,
    open_lines,
    open_parquet,
    read_file,
    read_json_line,
    read_parquet,
)
from niblick.errors import DataError

HUB = "hub:"
LARGE = 64_000_000  # bytes of text above which a corpus is streamed
_PACKED = 4  # how much text a byte of a compressed or Parquet file is taken for
UNIT = 32_000_000  # bytes of input in a unit
_WHOLE = 16_000_000  # bytes of plain text that are one document
_REACH, _LONGEST = 1 << 20, 1 << 20  # where a blank line is looked for; characters of a piece
_EDGE = 1 << 16  # bytes at each end of a file that its fingerprint covers
_BLANK = re.compile(rb"\n[ \t\r]*\n\s*")


@dataclass(frozen=True)
class Unit:
    """Files, relative to the root, that are read as one, or a stretch of a single one: bytes, or
    row groups of Parquet. `split` is set where the corpus is sorted by hand.
    """

    files: tuple[str, ...]
    split: str = ""
    start: int = 0
    end: int = 0  # 0: all of it


@dataclass(frozen=True)
class Inputs:
    """Where a corpus is, its units in order, and a hash of its files' names, sizes and ends."""

    root: str
    name: str
    units: tuple[Unit, ...]
    sha256: str
    passed_over: str = ""

    @property
    def by_hand(self) -> bool:
        """Whether folders named after splits decide what is held out."""
        return any(unit.split for unit in self.units)


def is_large(source: str | Path) -> bool:
    """Whether a corpus is streamed: on the hub, or more than 64 MB of text."""
    if str(source).startswith(HUB):
        return True
    path = Path(source)
    if not path.exists():
        return False
    files = (
        [path]
        if path.is_file()
        else [
            file
            for file in path.rglob("*")
            if kind_of(file) and not is_hidden(file, path) and file.is_file()
        ]
    )
    packed = {".gz", ".zst", ".parquet"}
    sizes = (f.stat().st_size * (_PACKED if f.suffix.lower() in packed else 1) for f in files)
    return sum(sizes) > LARGE


def list_inputs(source: str | Path, field: str, splits: tuple[str, ...]) -> Inputs:
    """The units of a file, a folder, or `hub:OWNER/NAME[@REVISION][/FOLDER or /PATTERN]`."""
    if str(source).startswith(HUB):
        return _list_hub(str(source))
    root = Path(source)
    if not root.exists():
        raise DataError(f"corpus {str(source)!r} does not exist")
    listing, base = list_files(root, splits), root if root.is_dir() else root.parent
    digest, units, small = hashlib.sha256(), list[Unit](), list[str]()
    filled, before = 0, ""
    for split, path in listing.files:
        name, size = path.relative_to(base).as_posix(), path.stat().st_size
        digest.update(f"{name}\0{size}\0".encode("utf-8", "surrogateescape") + _edges(path, size))
        stretches = list(_stretches(path, size, field))
        if small and (stretches or split != before or filled + size > UNIT):
            units.append(Unit(tuple(small), before))
            small, filled = [], 0
        if stretches:
            units += [Unit((name,), split, start, end) for start, end in stretches]
        else:
            small.append(name)
            filled += size
        before = split
    if small:
        units.append(Unit(tuple(small), before))
    name = root.resolve().name
    return Inputs(str(base), name, tuple(units), digest.hexdigest(), listing.passed_over)


def _edges(path: Path, size: int) -> bytes:
    with path.open("rb") as file:
        first = file.read(_EDGE)
        file.seek(max(0, size - _EDGE))
        return hashlib.sha256(first + file.read(_EDGE)).digest()


def _stretches(path: Path, size: int, field: str) -> Iterator[tuple[int, int]]:
    """How a large file is cut; nothing for a small one, (0, 0) for one that is read whole."""
    kind = kind_of(path)
    if kind == ".parquet":
        yield from _row_groups(path, field)
    elif size > _WHOLE and kind in (*LINES[1:], ".html", ".htm"):
        yield 0, 0
    elif size > (UNIT if kind == LINES[0] else _WHOLE):
        yield from ((start, min(start + UNIT, size)) for start in range(0, size, UNIT))


def _row_groups(path: Path, field: str) -> Iterator[tuple[int, int]]:
    with open_parquet(path, field) as file:
        column = file.schema_arrow.names.index(field)
        plain = len(file.schema_arrow.names) == file.metadata.num_columns  # no nested ones
        start = filled = 0
        for group in range(file.num_row_groups):
            found = file.metadata.row_group(group)
            size = found.column(column).total_uncompressed_size if plain else found.total_byte_size
            if filled and filled + size > UNIT:
                yield start, group
                start, filled = group, 0
            filled += size
        if start < file.num_row_groups:
            yield start, file.num_row_groups


def _list_hub(source: str) -> Inputs:
    """The Parquet and JSON Lines files of a dataset repository, at the commit it has now."""
    repository, revision, inside = _hub_parts(source)
    commit, found = HuggingFaceHub(repository, revision).list_all()
    files = [f for f in sorted(found, key=lambda f: f.path) if _wanted(f, inside)]
    if not files:
        raise DataError(
            f"dataset repository {repository!r} has no .parquet or .jsonl files"
            + (f" in {inside!r}" if inside else "")
        )
    listed = "".join(f"{file.path}\0{file.size}\0{file.sha256}\0" for file in files)
    digest = hashlib.sha256(f"{repository}@{commit}\0{listed}".encode()).hexdigest()
    units = tuple(Unit((file.path,)) for file in files)
    return Inputs(f"{HUB}{repository}@{commit}", repository, units, digest)


def _hub_parts(source: str) -> tuple[str, str | None, str]:
    """Repository, revision and folder or pattern of `hub:OWNER/NAME[@REVISION][/INSIDE]`."""
    match = re.fullmatch(r"([\w.-]+/[\w.-]+)(?:@([^/]+))?(?:/(.*))?", source.removeprefix(HUB))
    if match is None:
        raise DataError(f"{source!r} is not like hub:OWNER/NAME, @REVISION and /FOLDER after it")
    return match[1], match[2], match[3] or ""


def _wanted(file: RemoteFile, inside: str) -> bool:
    path = PurePosixPath(file.path)
    kind = kind_of(Path(file.path))
    below = not inside or file.path.startswith(inside.rstrip("/") + "/") or path.match(inside)
    return below and kind in (".parquet", *LINES)


def read_unit(root: str, unit: Unit, field: str, scratch: Path) -> Iterator[str]:
    """The documents of a unit in order; a remote file lies in `scratch` while it is read."""
    if root.startswith(HUB):
        repository, revision, _ = _hub_parts(root)
        place = scratch / hashlib.sha256(unit.files[0].encode()).hexdigest()[:16]
        try:
            file = HuggingFaceHub(repository, revision).download(unit.files[0], place)
            yield from read_file(file, field)
        finally:
            shutil.rmtree(place, ignore_errors=True)
        return
    for name in unit.files:
        path = Path(root) / name
        if not unit.end:
            yield from read_file(path, field)
        elif kind_of(path) == ".parquet":
            yield from read_parquet(path, field, range(unit.start, unit.end))
        elif kind_of(path) == LINES[0]:
            yield from _read_lines(path, unit, field)
        else:
            yield from _read_stretch(path, unit)


def _read_lines(path: Path, unit: Unit, field: str) -> Iterator[str]:
    """The lines that begin in a stretch of bytes."""
    with open_lines(path) as file:
        at = unit.start
        if at:
            file.seek(at - 1)
            at += len(file.readline()) - 1
        while at < unit.end and (line := file.readline()):
            text = read_json_line(line, f"{str(path)!r}, the line at byte {at:,},", field)
            at += len(line)
            if text is not None:
                yield text


def _read_stretch(path: Path, unit: Unit) -> Iterator[str]:
    """Plain text between the blank lines next to a stretch's ends, in pieces."""
    with open_lines(path) as file:
        start, end = _blank_line(file, unit.start), _blank_line(file, unit.end)
        file.seek(start)
        data = file.read(max(0, end - start))
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{str(path)!r} is not UTF-8: byte {start + error.start} is 0x{data[error.start]:02X}"
        ) from None
    for part in cut_text(text):
        yield from (part[i : i + _LONGEST] for i in range(0, len(part), _LONGEST))


def _blank_line(file: IO[bytes], at: int) -> int:
    """Where the text after the first blank line from `at` begins, else that after the first line
    end, else the first whole character; the file's ends are such places.
    """
    if not at:
        return 0
    file.seek(at)
    data = file.read(_REACH)
    if match := _BLANK.search(data):
        return at + match.end()
    if (found := data.find(b"\n")) >= 0:
        return at + found + 1
    return at + next((i for i, byte in enumerate(data[:4]) if byte & 0xC0 != 0x80), len(data))
