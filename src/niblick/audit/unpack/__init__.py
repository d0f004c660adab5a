"""Turns a script as shipped into the program text that would run, without running anything.

`unpack` follows any nesting of exec with lzma, zlib, gzip, bz2, brotli, zstd, base85, ascii85,
base64, hex and their helpers, keeps sizes as shipped and unpacked, and reports a layer it cannot
read instead of guessing.
"""

from __future__ import annotations

import ast
import re
import sys
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from niblick.audit.types import Source
from niblick.audit.unpack.bundles import bundled, path_of
from niblick.audit.unpack.codecs import MAX_TEXT, PackError
from niblick.audit.unpack.evaluate import Evaluator, Executed, Loader
from niblick.audit.unpack.fstrings import for_old_parser
from niblick.audit.words import words

MAX_DEPTH = 24
_DECODING = words("lzma zlib base64 bz2 gzip brotli zstandard binascii codecs marshal")
_COOKIE = re.compile(rb"^[ \t\f]*#.*?coding[:=][ \t]*([-\w.]+)")
_BLANK = re.compile(rb"^[ \t\f]*(?:#|$)")
_UTF8 = frozenset({"utf-8", "utf8", "u8", "utf", "utf-8-sig", "ascii", "us-ascii"})
_USUAL_CODINGS = _UTF8 | {"latin-1", "latin1", "iso-8859-1", "iso-8859-15", "cp1252", "l1"}
_FILE = re.compile(rb"[\"']([\w.\-]{1,80}\.[\w]{1,8})[\"']")
_HINT = re.compile(
    r"(?<![\w.])(?:exec|eval)\s*\(|exec_module|load_module|runpy|os\.system|subprocess|__import__"
    r"|os\.exec|builtins"
)


@dataclass(frozen=True, kw_only=True)
class Unpacked:
    """A script's `Source`, the other files its loader carries, and the variables the loader
    sets.
    """

    source: Source
    files: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)


def parse(text: str) -> ast.Module:
    """The syntax tree of Python text; strings valid only from 3.12 on are accepted on 3.11 too."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return ast.parse(text)
        except SyntaxError:
            if sys.version_info >= (3, 12):
                raise
            return ast.parse(for_old_parser(text))


def unpack(data: bytes, path: str, siblings: Mapping[str, str | bytes] | None = None) -> Unpacked:
    """The program text in `data`; `siblings` are files beside it that its loader may read by
    name.
    """
    loader = Loader(files=dict(siblings or {}))
    layers: list[str] = ["bom"] if data.startswith(b"\xef\xbb\xbf") else []
    error: str | None = None
    text = ""
    tree: ast.Module | None = None
    try:
        text, coding = _text(data)
        layers += [f"coding:{coding}"] if coding else []
        text, tree = _flatten(text, loader, layers, 0, path)
    except PackError as problem:
        error = str(problem)
    except SyntaxError as problem:
        error = f"{type(problem).__name__}: {problem.msg} (line {problem.lineno})"
    except (ValueError, RecursionError, MemoryError) as problem:
        error = f"{type(problem).__name__}: the text cannot be parsed ({problem})"
    if error is not None:
        tree = None
    source = Source(
        path=path,
        text=text,
        shipped_bytes=len(data),
        unpacked_bytes=len(text.encode("utf-8", "replace")),
        layers=tuple(layers),
        tree=tree,
        error=error,
        resolved=tuple(Counter(call for call, _ in loader.resolved).items()),
    )
    written = {
        k: v for k, v in loader.files.items() if k not in (siblings or {}) and isinstance(v, str)
    }
    return Unpacked(source=source, files=written, environment=loader.environment)


def unpack_file(path: Path) -> Unpacked:
    """`unpack` of a file on disk, with the text files beside it within reach of its loader."""
    data = path.read_bytes()
    siblings: dict[str, str | bytes] = {}
    if len(data) < MAX_TEXT and _HINT.search(data.decode("latin-1")):
        named = {name.decode() for name in _FILE.findall(data)}
        for other in sorted(
            p for p in path.parent.glob("*") if p.suffix == ".py" or p.name in named
        )[:50]:
            if (
                other != path
                and other.is_file()
                and not other.is_symlink()
                and other.stat().st_size < MAX_TEXT // 8
            ):
                siblings[other.name] = (
                    other.read_text("utf-8", "replace")
                    if other.suffix == ".py"
                    else other.read_bytes()
                )
    return unpack(data, path.name, siblings)


def _text(data: bytes) -> tuple[str, str]:
    """Program text as Python decodes it (PEP 263), and its coding where that is an unusual one."""
    if len(data) > MAX_TEXT:
        raise PackError(f"a script of {len(data)} bytes, at most {MAX_TEXT}")
    coding = declared_coding(data)
    if coding not in _USUAL_CODINGS:
        try:
            return _lines(data.decode(coding)), coding
        except (LookupError, TypeError, ValueError) as problem:
            raise PackError(f"its declared coding {coding!r} does not decode it") from problem
    try:
        return _lines(data.decode("utf-8-sig" if coding in _UTF8 else coding)), ""
    except UnicodeDecodeError as problem:
        if b"\x00" in data[:64] or data[:2] in (b"\x1f\x8b", b"PK"):
            raise PackError("the file is binary, not program text") from problem
        return _lines(data.decode("latin-1")), ""


def declared_coding(data: bytes) -> str:
    """The coding that the first two lines of a source declare; UTF-8 where they declare none."""
    for line in data.removeprefix(b"\xef\xbb\xbf").splitlines()[:2]:
        found = _COOKIE.match(line)
        if found is not None:
            return found[1].decode("ascii", "replace").lower().replace("_", "-")
        if not _BLANK.match(line):
            break
    return "utf-8"


def _lines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _flatten(
    text: str, loader: Loader, layers: list[str], depth: int, path: str
) -> tuple[str, ast.Module]:
    """Program text with every `exec` of a recoverable payload replaced by that payload, and its
    tree.
    """
    if depth > MAX_DEPTH:
        raise PackError(f"more than {MAX_DEPTH} layers of packing")
    tree = parse(text)
    if not _HINT.search(text):
        return text, tree
    pieces: list[str] = []
    found = False
    scope: dict[str, object] = {"__file__": path}
    run = Evaluator(loader)
    lines = text.split("\n")
    for statement in tree.body:
        segment = "\n".join(lines[statement.lineno - 1 : statement.end_lineno])
        executed = _into_modules(_executed_by(statement, run, scope, segment), loader, layers)
        found = found or bool(executed)
        for item in executed:
            layers.extend(item.layers)
            pieces.append(_flatten(item.text, loader, layers, depth + 1, path)[0])
        if not executed and not _is_loader(statement):
            pieces.append(segment)
    bundle = bundled(tree, run, scope)
    layers.extend(bundle.layers)
    loader.files.update(bundle.files)
    loader.resolved |= bundle.calls
    if not found:
        return text, tree
    pieces = [piece for piece in pieces if piece.strip()]
    joined = "\n".join(pieces) + "\n" if len(pieces) > 1 else "".join(pieces)
    if len(joined) > MAX_TEXT:
        raise PackError(f"the script unpacks to more than {MAX_TEXT} bytes")
    return joined, parse(joined)


def _into_modules(executed: list[Executed], loader: Loader, layers: list[str]) -> list[Executed]:
    """Keeps what runs in modules of its own as files of the loader; the rest is the script's own
    text.
    """
    named = {item.module: item.text for item in executed if item.module not in (None, "__main__")}
    for item in executed:
        if item.module in named:
            layers.extend(item.layers)
            loader.resolved.add((item.call, item.line))
            loader.files[path_of(item.module or "", named)] = item.text
    return [item for item in executed if item.module not in named]


def _executed_by(
    statement: ast.stmt, run: Evaluator, scope: dict[str, object], segment: str
) -> list[Executed]:
    """What one top-level statement would execute; ordinary program code is left unread."""
    if isinstance(statement, (ast.ClassDef, ast.AsyncFunctionDef)):
        return []
    compound = isinstance(statement, (ast.If, ast.For, ast.While, ast.With, ast.Try))
    if compound and not _HINT.search(segment) and "open(" not in segment and "write" not in segment:
        return []
    before = len(run.loader.executed)
    try:
        run.run([statement], scope)
    except PackError:
        raise
    except Exception:  # noqa: BLE001 - loader code is hostile input; what it did until here stands
        return run.loader.executed[before:]
    return run.loader.executed[before:]


def _is_loader(statement: ast.stmt) -> bool:
    """Whether a statement only holds payload text or brings in decoders."""
    if isinstance(statement, ast.Import):
        return all(alias.name in _DECODING for alias in statement.names)
    if isinstance(statement, ast.ImportFrom):
        return statement.module in _DECODING
    return isinstance(statement, (ast.Assign, ast.Expr)) and any(
        isinstance(node, ast.Constant)
        and isinstance(node.value, (str, bytes))
        and len(node.value) > 4000
        for node in ast.walk(statement)
    )
