"""A submission's files, copied once, from an untrusted folder: what reading and running work on.

No link is followed, nothing but regular files is opened, and every size is known before a byte is
read. What stays out is told: a part of the program or of its documents that could not be taken is a
reason to hold, since what it says is not known. The folder itself is never looked at again.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from niblick.audit.sandbox import Bundle
from niblick.audit.types import Finding, Severity, Span
from niblick.audit.words import words
from niblick.errors import AuditError

MOST_FILE, MOST_ALL, MOST_FILES, MOST_SEEN, MOST_DEPTH = 24_000_000, 160_000_000, 2_000, 20_000, 8
_MOST_SCRIPT = 16 * 1024 * 1024
_MOST_TOLD = 20
_CODE = words(".py .pyx .sh .c .cc .cpp .cu .cuh .h .hpp .rs .go .js .ts")
_TOLD_BY = frozenset({"submission.json", "requirements.txt", "readme.md", "readme.txt", "readme"})
_EVIDENCE = frozenset({".log", ".txt", ".md", ".json"})
_SKIPPED = frozenset({"__pycache__", "node_modules", "venv", "wandb", "site-packages"})
_IMPORT = re.compile(rb"^[ \t]*(?:from|import)[ \t]+([A-Za-z_]\w{0,99})", re.MULTILINE)
_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@dataclass
class Snapshot:
    """`bundle` holds the files; `script` is the one asked for, if one was; `place` keeps the last
    parts of the folder's name, which tell a record's track; `left_out` names what was not taken.
    """

    bundle: Bundle = field(default_factory=Bundle)
    script: str | None = None
    place: str = "submission"
    left_out: list[tuple[str, str, bool]] = field(default_factory=list)

    @property
    def readable(self) -> bool:
        """Whether there is something to read: the script asked for, or a folder."""
        return self.script is None or self.script in self.bundle.sizes()

    def findings(self) -> Iterator[Finding]:
        """One for each thing that stayed out, up to a bound, the weightiest first."""
        told = sorted(self.left_out, key=lambda each: not each[2])
        for name, why, weighs in told[:_MOST_TOLD]:
            yield _finding(f"{name} {why}; it was not read", weighs=weighs, file=name)
        if len(told) > _MOST_TOLD:
            rest = told[_MOST_TOLD:]
            yield _finding(f"{len(rest)} more were not read either", weighs=rest[0][2], file=".")


def _finding(evidence: str, *, weighs: bool, file: str) -> Finding:
    return Finding(
        rule="not-read",
        severity=Severity.WARNING if weighs else Severity.NOTE,
        verdict="hold_unclear" if weighs else None,
        span=Span(file=file, start=1, end=1),
        evidence=evidence,
        pointer="records: the script runs inside its folder",
        cure="ship plain files of a size that can be read, under plain names",
        source="record",
    )


def take(path: Path, script: str | None = None) -> Snapshot:
    """Copies the submission at `path`: a folder, or a script with the code beside it (all of its
    folder where that is a record). `AuditError` if it cannot be opened or lacks `script`.
    """
    taken, name, folder = Snapshot(), script, path
    try:
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            name, folder = script or path.name, path.parent
        last = _OPEN | os.O_DIRECTORY
        handle = os.open(folder, last if folder == path else last & ~os.O_NOFOLLOW)
        try:
            _fill(taken, handle, name if folder != path else None)
        finally:
            os.close(handle)
    except OSError as error:
        name = name or path.name or "."
        _leave(taken, name, f"cannot be opened ({error.strerror or error})", weighs=True)
    parts = Path(os.path.abspath(folder)).parts[-3:]
    taken.place = "/".join(re.sub(r"[^\w.-]|^\.+$", "_", part)[:100] for part in parts)
    taken.script = name
    if script is None and name is not None and not taken.readable:
        known = [why for each, why, _ in taken.left_out if each == name]
        taken.left_out = [each for each in taken.left_out if each[0] != name]
        _leave(taken, name, *(known or ["cannot be taken for a script"]), weighs=True)
    if script is not None and script not in taken.bundle.sizes():
        scripts = [each for each in taken.bundle.sizes() if each.endswith(".py")]
        shown = ", ".join(sorted(scripts, key=lambda each: each.count("/"))[:8]) or "none"
        raise AuditError(f"--script {script}: no such script in {path}; its scripts: {shown}")
    return taken


def _fill(taken: Snapshot, handle: int, lone: str | None) -> None:
    """Takes files in, those of the program first; `lone` is a script that may stand in a folder
    that is none of its own.
    """
    found = sorted(
        _walk(taken, handle), key=lambda name: (not _is_program(name), name.count("/"), name)
    )
    if lone is not None and not any(name.lower() in _TOLD_BY for name in found):
        found = _beside(taken, handle, found, lone)
    total = 0
    for number, name in enumerate(found):
        if number >= MOST_FILES or total >= MOST_ALL:
            _leave(taken, name, f"is beyond the {MOST_FILES} files or {MOST_ALL} bytes of a review")
            continue
        data, size = _content(taken, handle, name)
        if data is not None:
            taken.bundle.add(name, data, size)
            total += len(data)


def _walk(taken: Snapshot, root: int) -> Iterator[str]:
    """Names of the regular files below `root`; hidden and built ones aside."""
    waiting, seen = [""], 0
    while waiting:
        prefix = waiting.pop(0)
        try:
            with _folder(root, prefix) as handle, os.scandir(handle) as entries:
                listed = list(itertools.islice(entries, MOST_SEEN - seen + 1))
                modes = [(each.name, each.stat(follow_symlinks=False).st_mode) for each in listed]
        except OSError as error:
            _leave(taken, prefix or ".", f"cannot be opened ({error.strerror})", weighs=True)
            continue
        seen += len(modes)
        if seen > MOST_SEEN:
            _leave(taken, prefix or ".", f"makes it more than {MOST_SEEN} entries", weighs=True)
            return
        for last, mode in modes:
            name = prefix + last
            if last in _SKIPPED or (last.startswith(".") and _suffix(last) not in _CODE):
                if stat.S_ISDIR(mode) and last != "__pycache__" and _holds_code(root, name):
                    _leave(taken, name, "holds code and is not looked into", weighs=True)
                continue
            if not name.isprintable():
                _leave(taken, name, "has a name with characters that cannot be shown")
            elif stat.S_ISREG(mode):
                yield name
            elif not stat.S_ISDIR(mode):
                _leave(taken, name, "is a link" if stat.S_ISLNK(mode) else "is no regular file")
            elif _suffix(name) in _CODE | _EVIDENCE:
                _leave(taken, name, "is a folder, by its name a file")
            elif name.count("/") >= MOST_DEPTH:
                _leave(taken, name, f"lies more than {MOST_DEPTH} folders deep", weighs=True)
            else:
                waiting.append(f"{name}/")


@contextlib.contextmanager
def _folder(root: int, prefix: str) -> Iterator[int]:
    """A folder below `root`, opened part by part so that none of them can be a link."""
    handle = os.dup(root)
    try:
        for part in filter(None, prefix.split("/")):
            inner = os.open(part, _OPEN | os.O_DIRECTORY, dir_fd=handle)
            os.close(handle)
            handle = inner
        yield handle
    finally:
        os.close(handle)


def _content(taken: Snapshot, root: int, name: str) -> tuple[bytes | None, int]:
    """What a file holds, or the first part of what is no program, and its size."""
    prefix, _, last = name.rpartition("/")
    try:
        with _folder(root, prefix) as handle:
            file = os.open(last, _OPEN, dir_fd=handle)
    except OSError as error:
        _leave(taken, name, f"cannot be opened ({error.strerror})")
        return None, 0
    with os.fdopen(file, "rb") as opened:
        about = os.fstat(file)
        if not stat.S_ISREG(about.st_mode):
            _leave(taken, name, "is no regular file")
            return None, 0
        if about.st_size > _MOST_SCRIPT and _is_program(name):
            _leave(taken, name, f"has {about.st_size:,} bytes, at most {_MOST_SCRIPT:,} are read")
            return None, 0
        if about.st_size > MOST_FILE:
            _leave(taken, name, f"is read up to {MOST_FILE:,} bytes only", weighs=False)
        return opened.read(min(about.st_size, MOST_FILE)), about.st_size


def _holds_code(root: int, name: str) -> bool:
    """Whether a folder that is passed over has modules that a script could import."""
    with contextlib.suppress(OSError), _folder(root, name) as handle, os.scandir(handle) as found:
        return any(each.name.endswith(".py") for each in itertools.islice(found, 1000))
    return False


def _beside(taken: Snapshot, root: int, found: list[str], lone: str) -> list[str]:
    """Of a folder that is no record: the script, the code next to it, and modules that it names;
    nobody's private files.
    """
    data, _ = _content(taken, root, lone) if lone in found else (None, 0)
    named = {name.decode() for name in _IMPORT.findall(data or b"")}
    taken.left_out = [each for each in taken.left_out if each[0] == lone]
    code = [name for name in found if _suffix(name) in _CODE]
    kept = [name for name in code if "/" not in name or name.partition("/")[0] in named]
    return [name for name in found if name in kept or name == lone]


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def _is_program(name: str) -> bool:
    return _suffix(name) in _CODE or PurePosixPath(name).name.lower() in _TOLD_BY


def _leave(taken: Snapshot, name: str, why: str, *, weighs: bool | None = None) -> None:
    """Notes what is not taken; it weighs where it may be a part of the program."""
    shown = name if name.isprintable() else ascii(name)[1:-1]
    taken.left_out.append((shown, why, _is_program(name) if weighs is None else weighs))
