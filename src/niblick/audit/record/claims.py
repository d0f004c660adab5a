"""What submission.json claims, under the several names its fields go by, and the artifacts that are
shipped.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_BPB = ("val_bpb", "mean_val_bpb", "bpb", "val_bpb_mean", "score")
_LOSS = ("val_loss", "mean_val_loss", "val_loss_mean")
_BYTES = (
    "bytes_total",
    "artifact_bytes_max",
    "total_submission_bytes",
    "artifact_bytes",
    "artifact_size_bytes",
)
_CODE = ("bytes_code", "code_bytes")
_PARAMETERS = ("model_params", "total_params", "parameters", "params", "num_params", "param_count")
_BASELINE = (
    "comparison_baseline_bpb",
    "baseline_bpb",
    "previous_record_bpb",
    "prior_record_bpb",
    "sota_bpb",
)
_ARTIFACTS = ("*.ptz", "*.nib", "*.int4*", "*.int5*", "*.int6*", "*.int8*")
REQUIRED = ("name", "author", "date", "val_bpb", "bytes_total")


@dataclass(frozen=True, kw_only=True)
class Claim:
    """The fields an audit compares; None where submission.json has none that can be read as
    such.
    """

    name: str | None
    author: str | None
    date: str | None
    track: str | None
    bpb: float | None
    loss: float | None
    bytes_total: int | None
    bytes_code: int | None
    parameters: int | None
    baseline_bpb: float | None
    seeds: int | None
    missing: tuple[str, ...]


def read_claim(metadata: dict[str, Any]) -> Claim:
    """The claim in `metadata`, which comes from the submission and may hold anything."""
    bpb, total = _number(metadata, _BPB), _number(metadata, _BYTES)
    present = {name for name in ("name", "author", "date") if metadata.get(name) not in (None, "")}
    present |= {"val_bpb"} if bpb is not None else set()
    present |= {"bytes_total"} if total is not None else set()
    seeds = metadata.get("seeds")
    return Claim(
        name=_text(metadata, "name", "title", "run_name"),
        author=_text(metadata, "author", "github_id"),
        date=_text(metadata, "date"),
        track=_text(metadata, "track"),
        bpb=bpb,
        loss=_number(metadata, _LOSS),
        bytes_total=_whole(total),
        bytes_code=_whole(_number(metadata, _CODE)),
        parameters=_whole(_number(metadata, _PARAMETERS)),
        baseline_bpb=_number(metadata, _BASELINE),
        seeds=len(seeds) if isinstance(seeds, list) else None,
        missing=tuple(name for name in REQUIRED if name not in present),
    )


def artifact_files(root: Path) -> dict[str, int]:
    """Compressed models in the folder: name to size in bytes."""
    found = {path for pattern in _ARTIFACTS for path in root.glob(pattern)}
    return {
        path.name: path.stat().st_size
        for path in sorted(found)
        if path.is_file() and not path.is_symlink()
    }


def _number(metadata: dict[str, Any], names: tuple[str, ...]) -> float | None:
    """The first of `names` that holds a number, a number in quotes, or numbers by seed (their
    mean).
    """
    for name in names:
        value = metadata.get(name)
        if isinstance(value, dict):
            inner = [number for number in map(_finite, value.values()) if number is not None]
            said = _finite(value.get("mean", value.get("value")))
            found = said if said is not None else sum(inner) / len(inner) if inner else None
        else:
            found = _finite(value)
        if found is not None:
            return found
    return None


def _finite(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


def _text(metadata: dict[str, Any], *names: str) -> str | None:
    for name in names:
        value = metadata.get(name)
        if isinstance(value, str | int | float) and str(value).strip():
            return str(value).strip()[:300]
    return None
