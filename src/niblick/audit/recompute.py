"""The claimed figure beside one made here: the score of a folder's own artifact on a given text.

Only artifacts of niblick (`*.nib`) are scored, by this installation and in a process of its own; no
code of the submission runs. What comes out is shown and may warn; it decides no verdict.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from niblick.audit.types import Finding, Report, Severity, Span

_SECONDS = 3600
_LARGEST = 256_000_000
_CLOSE = 0.0005
_SCORE = """
import json, sys
import niblick
model = niblick.load(sys.argv[1])
score = niblick.evaluate(model, sys.argv[2])
shape = {"dim": model.recipe.model.dim, "layers": len(model.plan.layers)}
shape |= {"vocab": model.recipe.model.vocab_size}
print(json.dumps({"bpb": score.bpb, "bytes": score.bytes, **shape}))
"""


def recomputed(report: Report, path: Path, data: Path) -> Report:
    """The report with the figure of the folder's artifact on `data` beside the claimed one, and
    with its width, layers and vocabulary; `recompute_error` in the record says why there is none.
    """
    found = artifact(path)
    if isinstance(found, str):
        return replace(report, record={**report.record, "recompute_error": found})
    said = _scored(found, data)
    if isinstance(said, str):
        return replace(report, record={**report.record, "recompute_error": said})
    record = {
        **report.record,
        "recomputed_bpb": said["bpb"],
        "recomputed_bytes": said["bytes"],
        "recomputed_of": found.name,
        "recomputed_on": data.name,
        **{name: said[name] for name in ("dim", "layers", "vocab")},
    }
    smoke = report.smoke
    if smoke is not None:
        shape = {n: said[n] for n in ("dim", "layers", "vocab") if getattr(smoke, n) is None}
        smoke = replace(smoke, **shape)
    more = _differs(record, found)
    return replace(report, record=record, smoke=smoke, findings=(*report.findings, *more))


def artifact(path: Path) -> Path | str:
    """The one artifact of niblick in a folder, or why none is scored."""
    folder = path if path.is_dir() else path.parent
    files = [p for p in sorted(folder.glob("*.nib")) if p.is_file() and not p.is_symlink()]
    if len(files) != 1:
        return f"the folder holds {len(files) or 'no'} artifacts (*.nib), expected one"
    if files[0].stat().st_size > _LARGEST:
        return f"{files[0].name} is larger than {_LARGEST:,} bytes"
    return files[0]


def _scored(found: Path, data: Path) -> dict[str, Any] | str:
    """What the artifact's score and shape are, or why they could not be had."""
    command = [sys.executable, "-P", "-c", _SCORE, str(found.absolute()), str(data.absolute())]
    try:
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=_SECONDS
        )
    except subprocess.TimeoutExpired:
        return f"scoring took more than {_SECONDS} s"
    lines = done.stdout.strip().splitlines() if done.returncode == 0 else []
    try:
        said: dict[str, Any] = json.loads(lines[-1])
        return {**said, "bpb": round(float(said["bpb"]), 6)}
    except (ValueError, KeyError, IndexError, TypeError):
        return f"scoring failed ({' '.join(done.stderr.strip().splitlines()[-1:])[:200]})"


def _differs(record: dict[str, Any], found: Path) -> list[Finding]:
    claimed = record.get("claimed_bpb")
    if not isinstance(claimed, float) or abs(claimed - record["recomputed_bpb"]) <= _CLOSE:
        return []
    return [
        Finding(
            rule="record-recomputed",
            severity=Severity.WARNING,
            verdict=None,
            span=Span(file=found.name, start=1, end=1),
            evidence=f"the artifact scores {record['recomputed_bpb']:.5f} bpb on"
            f" {record['recomputed_on']}, where {claimed:.5f} is claimed",
            pointer="Limits and evidence: the claim is the artifact's own score",
            cure="give the text that the claim was made on, or correct the claim",
            source="record",
        )
    ]
