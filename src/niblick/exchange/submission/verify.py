"""Does an exported folder give its own score, without this package? Runs `train_gpt.py --eval-only`
elsewhere.

Only folders that an export on this machine recorded are run: anybody else's is code to distrust,
which belongs into the audit's sandbox.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from niblick.errors import NiblickError, ScoreError
from niblick.files import finite, parse_json, read_json, sha256_file, write_atomically
from niblick.runtime import cache_folder

TOLERANCE = 5e-7  # equal to six digits
_FILES = (
    "README.md",
    "requirements.txt",
    "submission.json",
    "train_gpt.py",
    "artifact.nib",
    "tokenizer.model",
)

# Runs the script with the dependencies importable and this package not.
_WITHOUT_PACKAGE = """
import runpy, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "niblick":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.path[:] = [p for p in sys.path if p] + sys.argv[2].split("|")
sys.meta_path.insert(0, Absent())
sys.argv = [sys.argv[1], "--eval-only", *sys.argv[3:]]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@dataclass(frozen=True)
class Verified:
    """What the folder claims of its artifact and what it gave, in bits per byte."""

    claimed: float
    found: float
    score: dict[str, Any]

    @property
    def agrees(self) -> bool:
        """Whether the two are equal to six digits."""
        return abs(self.claimed - self.found) <= TOLERANCE


def record_folder(folder: Path) -> None:
    """Remember that this machine exported `folder` as it is now."""
    known = _known()
    known[folder_hash(folder)] = folder.name
    _records().parent.mkdir(parents=True, exist_ok=True)
    write_atomically(_records(), (json.dumps(known, indent=1).encode(),))


def folder_hash(folder: Path) -> str:
    """SHA-256 over the names and contents of the submission's files (logs aside)."""
    digest = hashlib.sha256()
    for name in _FILES:
        if (folder / name).is_file():
            digest.update(f"{name} {sha256_file(folder / name)}\n".encode())
    return digest.hexdigest()


def verify_submission(folder: Path, *, trust: bool = False, data: Path | None = None) -> Verified:
    """Score the folder's artifact by its own script, where `niblick` cannot be imported.

    Raises `NiblickError` for a folder that no export here recorded (unless `trust`), `ScoreError`
    where the script fails.
    """
    folder = folder.absolute()
    if not (folder / "train_gpt.py").is_file() or not (folder / "submission.json").is_file():
        raise NiblickError(
            f"{str(folder)!r} is not a submission folder: it needs train_gpt.py and submission.json"
        )
    if not trust and folder_hash(folder) not in _known():
        raise NiblickError(
            f"{str(folder)!r} was not exported on this machine, or was changed since; review it"
            " with `niblick audit`, or run its code with --trust"
        )
    metadata = read_json(folder / "submission.json")
    claimed = metadata.get("artifact_bpb", metadata.get("val_bpb"))
    if (wanted := finite(claimed)) is None:
        raise NiblickError(f"submission.json in {str(folder)!r} claims no val_bpb")
    score = _run(folder, data)
    return Verified(wanted, float(score["bpb"]), score)


def _run(folder: Path, data: Path | None) -> dict[str, Any]:
    places = "|".join(p for p in sys.path if p.endswith(("site-packages", "dist-packages")))
    extra = ["--data", str(data.absolute())] if data else []
    command = [
        sys.executable,
        "-I",
        "-S",
        "-c",
        _WITHOUT_PACKAGE,
        str(folder / "train_gpt.py"),
        places,
        *extra,
    ]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, encoding="utf-8", errors="replace", check=False
    )
    lines = (done.stdout.strip() or done.stderr.strip()).splitlines()
    if done.returncode:
        tail = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        raise ScoreError(
            f"the script of {str(folder)!r} failed with exit code {done.returncode}:"
            f" {' '.join(tail)}"
        )
    try:
        score = parse_json(lines[-1])
        if finite(score["bpb"]) is None:
            raise ValueError("no number")
    except (ValueError, KeyError, IndexError, TypeError):
        raise ScoreError(f"the script of {str(folder)!r} printed no score") from None
    return dict(score)


def _records() -> Path:
    return cache_folder() / "exports.json"


def _known() -> dict[str, Any]:
    return read_json(_records()) if _records().is_file() else {}
