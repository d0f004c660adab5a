"""What of a submission goes into the sandbox: the script, the files it may import or read, its
environment.

Files reach the sandbox as copies, so nothing there can touch the originals. Hidden files, links and
very large files stay out, and a lone script takes only the code beside it along, never the rest of
its folder.
"""

from __future__ import annotations

import ast
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from niblick.audit.sandbox import Job
from niblick.audit.types import Submission

_MOST_FILE, _MOST_ALL, _MOST_FILES, _MOST_SEEN = 24_000_000, 96_000_000, 400, 5_000
_CODE = {".py", ".pyx", ".c", ".cc", ".cpp", ".cu", ".cuh", ".h", ".hpp"}
_SKIPPED = {"__pycache__", "node_modules", "venv", "wandb", "site-packages"}
_UNREAD = {
    ".pt",
    ".pth",
    ".ptz",
    ".safetensors",
    ".ckpt",
    ".bin",
    ".png",
    ".jpg",
    ".gif",
    ".pdf",
    ".zip",
    ".log",
}
_REPOSITORY = "_repository"


def folders(submission: Submission) -> tuple[Path, Path]:
    """The submission's folder and the script's own, which may lie below it."""
    assert submission.script is not None
    root, script = submission.root.resolve(), submission.script.resolve()
    base = root if root.is_dir() and script.is_relative_to(root) else script.parent
    return base, script.parent


def job_for(submission: Submission, task: str) -> Job:
    """The worker's orders for one submission."""
    assert submission.script is not None
    script = submission.script.resolve()
    base, _ = folders(submission)
    arguments = {
        "script": script.relative_to(base).as_posix(),
        "environment": documented_environment(submission),
        "declared": sorted(declared_packages(*folders(submission))),
        "text": submission.source.text if submission.source else "",
    }
    files: dict[str, bytes | Path] = {script.relative_to(base).as_posix(): script}
    files.update(_within_bounds(_beside(base, script)))
    for name, path in _within_bounds(_from_repository(submission, base)):
        files.setdefault(name, path)
    return Job(task=task, arguments=arguments, files=files)


def documented_environment(submission: Submission) -> dict[str, str]:
    """Variables of the documented run command, those aside that a shell or a reader was meant to
    fill in.
    """
    given = submission.command.environment if submission.command else {}
    return {
        name: value for name, value in given.items() if not re.search(r"[$`<>{}]|\.\.\.", value)
    }


def declared_packages(*places: Path) -> set[str]:
    """Names of the distributions that requirements.txt files in `places` ask for."""
    names: set[str] = set()
    for folder in places:
        listed = folder / "requirements.txt"
        if listed.is_file():
            for line in listed.read_text("utf-8", "replace").splitlines()[:500]:
                match = re.match(r"\s*([A-Za-z0-9][\w.-]*)", line)
                if match:
                    names.add(match.group(1))
    return names


def _within_bounds(pairs: Iterator[tuple[str, Path]]) -> Iterator[tuple[str, Path]]:
    total = count = 0
    for name, path in pairs:
        size = path.stat().st_size
        if size <= _MOST_FILE and total + size <= _MOST_ALL and count < _MOST_FILES:
            total, count = total + size, count + 1
            yield name, path


def _beside(base: Path, script: Path) -> Iterator[tuple[str, Path]]:
    """Files of a record folder, or the code beside a lone script and the packages it imports."""
    is_record = any(
        (base / name).is_file() for name in ("submission.json", "README.md", "requirements.txt")
    )
    if is_record:
        for path in _walk(base):
            if path != script and path.suffix not in _UNREAD:
                yield path.relative_to(base).as_posix(), path
        return
    for path in sorted(script.parent.glob("*")):
        if path != script and path.suffix in _CODE and path.is_file() and not path.is_symlink():
            yield path.relative_to(base).as_posix(), path


def _from_repository(submission: Submission, base: Path) -> Iterator[tuple[str, Path]]:
    """Modules the script imports from the repository whose `records` folder holds the
    submission.
    """
    parents = [parent for parent in base.parents if parent.name == "records"]
    imported = _imported(submission)
    for root in [base, *(parent.parent for parent in parents)]:
        prefix = "" if root == base else f"{_REPOSITORY}/"
        for name in sorted(imported):
            if (root / f"{name}.py").is_file():
                yield f"{prefix}{name}.py", root / f"{name}.py"
            elif (root / name).is_dir() and not (root / name).is_symlink():
                for path in _walk(root / name):
                    if path.suffix in _CODE:
                        yield prefix + path.relative_to(root).as_posix(), path


def _imported(submission: Submission) -> set[str]:
    """Top-level names the script imports, the standard library's aside."""
    tree = submission.source.tree if submission.source else None
    names: set[str] = set()
    for node in ast.walk(tree) if tree is not None else ():
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module.partition(".")[0])
    return names - sys.stdlib_module_names


def _walk(folder: Path) -> Iterator[Path]:
    """Plain files below `folder`, four levels deep, none hidden, not more than a bounded number
    looked at.
    """
    seen = 0
    for place, inner, names in os.walk(folder):
        depth = len(Path(place).relative_to(folder).parts)
        inner[:] = sorted(
            name
            for name in inner
            if not name.startswith(".") and name not in _SKIPPED and depth < 4
        )
        for name in sorted(names):
            seen += 1
            path = Path(place, name)
            if seen > _MOST_SEEN:
                return
            if not name.startswith(".") and not path.is_symlink() and path.is_file():
                yield path
