"""The smoke test: does the script import on a CPU, what does it define, and if it fails, whose fault is it.

Runs the script in the sandbox only. A failure is the submission's own (`IMPORT_FAIL`) or the machine's
(`ENVIRONMENT`): a package, a GPU feature, a data file or a newer Python that is not here. `missing` names it and
`cure` says what would help.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from niblick.audit.blame import blame
from niblick.audit.sandbox import Job, Limits, Outcome, detect, run
from niblick.audit.types import Smoke, Submission

_LIMITS = Limits(cpu_seconds=90, wall_seconds=150)
_MOST_FILE, _MOST_ALL, _MOST_FILES = 24_000_000, 96_000_000, 400
_BESIDE = {".py", ".json", ".txt", ".toml", ".yaml", ".yml", ".cfg", ".ini", ".c", ".cpp", ".cu", ".h", ".cuh",
           ".model", ".vocab", ".md", ".sh", ".npy", ".npz", ".so", ".b85", ".b64", ".xz", ".lzma", ".br", ".zst",
           ".gz", ".pyx", ".tokens"}  # fmt: skip
_SKIPPED = {"__pycache__", "node_modules", "venv", "wandb", "data", "records"}


def smoke_test(submission: Submission, *, trust: bool = False) -> Smoke:
    """Imports the submission's script in the sandbox and describes what happened."""
    code = submission.source.shipped_bytes if submission.source else 0
    isolation = detect()
    if submission.script is None:
        return _not_run(code, isolation.kind, "there is no script")
    if not isolation.contained and not trust:
        return _not_run(code, "none", f"no isolation on this machine ({isolation.detail}); --trust runs it anyway")
    outcome = run(job_for(submission, "smoke"), trust=trust, limits=_LIMITS)
    return _judge(submission, outcome, code)


def job_for(submission: Submission, task: str) -> Job:
    """The worker's orders: the script, its documented environment, and the files beside it."""
    assert submission.script is not None
    script = submission.script.resolve()
    base, _ = _folders(submission)
    command = submission.command
    arguments = {
        "script": script.relative_to(base).as_posix(),
        "environment": dict(command.environment) if command else {},
        "declared": sorted(declared_packages(*_folders(submission))),
        "text": submission.source.text if submission.source else "",
    }
    return Job(task=task, arguments=arguments, files=dict(_files(base, script)))


def _folders(submission: Submission) -> tuple[Path, Path]:
    """The submission's folder and the script's own, which may lie below it."""
    assert submission.script is not None
    root, script = submission.root.resolve(), submission.script.resolve()
    base = root if root.is_dir() and script.is_relative_to(root) else script.parent
    return base, script.parent


def _files(base: Path, script: Path) -> Iterable[tuple[str, Path]]:
    """The script, and what may be imported or read beside it; hidden, foreign and very large files stay out."""
    yield script.relative_to(base).as_posix(), script
    total, count = 0, 1
    folders = [script.parent] + ([base] if base != script.parent else [])
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            inside = path.relative_to(base).parts
            skip = any(part.startswith(".") or part in _SKIPPED for part in inside)
            if skip or len(inside) > 6 or path.suffix not in _BESIDE or path.is_symlink() or not path.is_file():
                continue
            size = path.stat().st_size
            if path == script or size > _MOST_FILE or total + size > _MOST_ALL or count >= _MOST_FILES:
                continue
            total, count = total + size, count + 1
            yield path.relative_to(base).as_posix(), path


def declared_packages(*folders: Path) -> set[str]:
    """Names of the distributions that requirements.txt files in `folders` ask for."""
    names: set[str] = set()
    for folder in folders:
        listed = folder / "requirements.txt"
        if listed.is_file():
            for line in listed.read_text("utf-8", "replace").splitlines()[:500]:
                match = re.match(r"\s*([A-Za-z0-9][\w.-]*)", line)
                if match:
                    names.add(match.group(1))
    return names


def _not_run(code: int, isolation: str, why: str) -> Smoke:
    return Smoke(
        status="NOT_RUN", seconds=None, dim=None, layers=None, vocab=None, parameters=None, code_bytes=code,
        python=_python(), error=why, missing=None, own_fault=None, cure=None, isolation=isolation,
    )  # fmt: skip


def _python() -> str:
    return ".".join(str(part) for part in sys.version_info[:3])


def _judge(submission: Submission, outcome: Outcome, code: int) -> Smoke:
    result = outcome.result or {}
    measured = result.get("measured") or {}
    stood_in = [str(name) for name in result.get("stood_in", ())]
    if result.get("ok"):
        status, error, missing, own, cure = "SMOKE_TEST_PASS", None, ", ".join(stood_in) or None, None, None
    else:
        fault = blame(submission, outcome, stood_in, declared_packages(*_folders(submission)))
        own, error, missing, cure = fault.own, fault.error, fault.missing, fault.cure
        status = "IMPORT_FAIL" if own else "ENVIRONMENT"
    return Smoke(
        status=status,
        seconds=_number(result.get("seconds"), float),
        dim=_number(measured.get("dim"), int),
        layers=_number(measured.get("layers"), int),
        vocab=_number(measured.get("vocab"), int),
        parameters=_number(measured.get("parameters"), int),
        code_bytes=code,
        python=_python(),
        error=error,
        missing=missing,
        own_fault=own,
        cure=cure,
        isolation=outcome.isolation,
    )


def _number(value: Any, kind: type) -> Any:
    """A number of the worker's report, or None where it is not one: the report describes foreign code."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return kind(value) if abs(value) < 1e15 else None
