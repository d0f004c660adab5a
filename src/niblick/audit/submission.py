"""Any path seen as a submission: which script is under review, how it is run, and what lies beside
it.

Reading is bounded and follows no link out of the folder. Where a folder holds several scripts the
one its README runs is chosen, else train_gpt.py; `script=` overrides.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from niblick.audit.command import find_command
from niblick.audit.types import Source, Submission
from niblick.audit.unpack import Unpacked, unpack_file
from niblick.errors import AuditError

_MAX_TEXT = 4_000_000
_MAX_FILES = 400
MAX_MODULE = 600_000
_NATIVE = frozenset({".c", ".cc", ".cpp", ".cu"})
_LOOP = re.compile(r"\bfor\s*\([^;()]*;[^;]*;[^)]*\)")
_CODE = frozenset(
    {".py", ".c", ".cc", ".cpp", ".cu", ".h", ".hpp", ".sh", ".rs", ".go", ".js", ".ts"}
)
_HELPER = re.compile(
    r"(?:^|_)(?:test|setup|prepare|plot|analy|download|retoken|verify|ablat|sweep|probe)",
    re.IGNORECASE,
)


@dataclass(frozen=True, kw_only=True)
class Read:
    """A `Submission` and what its loader carries: other files and the variables it sets."""

    submission: Submission
    carried: dict[str, str] = field(default_factory=dict)
    loader_environment: dict[str, str] = field(default_factory=dict)


def c_sources(submission: Submission, carried: dict[str, str]) -> Iterator[str]:
    """The C sources of a submission: files beside its script or carried by it, strings in it."""
    for path in submission.context:
        if path.suffix in _NATIVE and path.stat().st_size < MAX_MODULE:
            yield path.read_text("utf-8", "replace")
    yield from (text for name, text in carried.items() if Path(name).suffix in _NATIVE)
    tree = submission.source.tree if submission.source else None
    for node in ast.walk(tree) if tree is not None else ():
        text = node.value if isinstance(node, ast.Constant) else None
        if isinstance(text, str) and _LOOP.search(text):
            yield text


def read_submission(path: Path, script: str | None = None) -> Submission:
    """The submission at `path`, a script or a folder; `AuditError` if there is nothing to read."""
    return read(path, script).submission


def read(path: Path, script: str | None = None) -> Read:
    """`read_submission`, with what the loader carries."""
    path = Path(path)
    if not path.exists():
        raise AuditError(
            f"{path}: no such file or folder; expected a training script or a record folder"
        )
    root = path if path.is_dir() else path.parent
    readme = _text(_first(root, ("README.md", "readme.md", "README.txt", "README", "Readme.md")))
    metadata = _metadata(root)
    chosen = _choose(root, path, script, readme, metadata)
    unpacked = unpack_file(chosen) if chosen else None
    submission = Submission(
        root=root,
        script=chosen,
        source=unpacked.source if unpacked else _no_source(root),
        context=_context(root, chosen) if path.is_dir() or script is None else (),
        command=find_command(root, chosen.name, readme, metadata) if chosen else None,
        readme=readme,
        metadata=metadata,
    )
    return _with_carried(submission, unpacked)


def _with_carried(submission: Submission, unpacked: Unpacked | None) -> Read:
    if unpacked is None:
        return Read(submission=submission)
    return Read(
        submission=submission, carried=unpacked.files, loader_environment=unpacked.environment
    )


def _no_source(root: Path) -> Source | None:
    return None


def _first(root: Path, names: tuple[str, ...]) -> Path | None:
    return next((root / name for name in names if _own(root, root / name)), None)


def _own(root: Path, path: Path) -> bool:
    """Whether a path is a plain file that no link leads out of the folder for."""
    try:
        return path.is_file() and path.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError):
        return False


def _text(path: Path | None) -> str | None:
    """A text file's content, its first `_MAX_TEXT` bytes at most."""
    if path is None or not path.is_file():
        return None
    with path.open("rb") as handle:
        return handle.read(_MAX_TEXT).decode("utf-8-sig", "replace")


def _metadata(root: Path) -> dict[str, object] | None:
    text = _text(_first(root, ("submission.json",)))
    if text is None:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _choose(
    root: Path,
    path: Path,
    script: str | None,
    readme: str | None,
    metadata: dict[str, object] | None,
) -> Path | None:
    """The script under review; None where the folder holds no Python at all."""
    if script is not None:
        chosen = root / script
        if not chosen.is_file() or root.resolve() not in chosen.resolve().parents:
            names = ", ".join(p.name for p in _scripts(root)[:8]) or "none"
            raise AuditError(f"--script {script}: no such script in {root}; its scripts: {names}")
        return chosen
    if path.is_file() and path.suffix == ".py":
        return path
    scripts = _scripts(root)
    for candidate in [p for p in scripts if p.name == "train_gpt.py"][:1]:
        run = [p for p in scripts if find_command(root, p.name, readme, metadata)]
        if not run or candidate in run:
            return candidate
        return run[0]
    run = [p for p in scripts if find_command(root, p.name, readme, metadata)]
    training = [p for p in scripts if p.name.startswith("train")] or [
        p for p in scripts if not _HELPER.search(p.stem)
    ]
    return next(iter(run or training or scripts), None)


def _scripts(root: Path) -> list[Path]:
    """Python files of a folder, nearest first: training scripts before the rest."""
    flat = sorted(
        (p for p in root.glob("*.py") if _own(root, p)),
        key=lambda p: (not p.name.startswith("train"), bool(_HELPER.search(p.stem)), p.name),
    )
    return flat or [p for p in sorted(root.glob("*/*.py")) if _own(root, p)][:50]


def _context(root: Path, chosen: Path | None) -> tuple[Path, ...]:
    """The other code files of the folder, two levels deep, bounded in number and size."""
    files: list[Path] = []
    for pattern in ("*", "*/*", "*/*/*"):
        for path in sorted(root.glob(pattern)):
            if path.suffix in _CODE and path != chosen and path.is_file() and not path.is_symlink():
                files.append(path)
            if len(files) >= _MAX_FILES:
                return tuple(files)
    return tuple(files)
