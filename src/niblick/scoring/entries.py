"""What `niblick compare` reads: runs, folders of seeds and score files, each as one entry with its
seeds.

Everything read here may come from somebody else: scores are checked, and of cards and metrics only
plain finite numbers are taken.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from niblick.errors import ScoreError
from niblick.scoring.markup import plain
from niblick.scoring.score import Score, read_score

Curve = list[tuple[float, float, float]]


@dataclass(frozen=True)
class Seed:
    """One trained model: its score, and what its run recorded where there is a run.

    `curve` holds (seconds, tokens, nats per token) of training; `ledger` bytes by part of the
    artifact.
    """

    name: str
    score: Score
    artifact_bytes: int | None = None
    train_seconds: float | None = None
    curve: Curve = field(default_factory=list)
    ledger: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Entry:
    """One thing to compare: a configuration with one or more seeds."""

    name: str
    seeds: tuple[Seed, ...]

    @property
    def bpb(self) -> list[float]:
        """Bits per byte of each seed."""
        return [seed.score.bpb for seed in self.seeds]

    @property
    def nats(self) -> list[float]:
        """Nats per token of each seed."""
        return [seed.score.nats_per_token for seed in self.seeds]

    @property
    def valid(self) -> bool:
        """Whether every seed's score is valid."""
        return all(seed.score.valid for seed in self.seeds)


def read_entries(paths: Sequence[Path], *, split: str, mode: str | None) -> list[Entry]:
    """An entry for each path, all of the same split and, where `mode` is None, of a mode that they
    share.
    """
    found = [(path, _candidates(path, split)) for path in paths]
    wanted = mode or _shared_mode(found)
    names = _unique_names(paths)
    return [
        Entry(name, tuple(_choose(seed, scores, wanted) for seed, scores in seeds))
        for name, (_, seeds) in zip(names, found, strict=True)
    ]


def check_comparable(entries: Sequence[Entry]) -> None:
    """Refuse scores of different data, or of the same data with different counts."""
    seeds = [(entry, seed) for entry in entries for seed in entry.seeds]
    first_entry, first = seeds[0]
    for entry, seed in seeds[1:]:
        for name, label in (
            ("data_sha256", "data"),
            ("bytes", "byte counts"),
            ("tokens", "token counts"),
        ):
            here, there = getattr(first.score, name), getattr(seed.score, name)
            if here != there:
                raise ScoreError(
                    f"different {label}: {plain(first_entry.name)}/{first.name} has {_short(here)},"
                    f" {plain(entry.name)}/{seed.name} has {_short(there)}; only scores of the same"
                    " text compare"
                )


def _short(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else plain(str(value)[:12])


Candidates = list[tuple[Path, list[Score]]]


def _candidates(path: Path, split: str) -> Candidates:
    """(seed folder, its scores of the split), several for a folder of seeds."""
    if path.is_file():
        score = read_score(path)
        if score.split != split:
            raise ScoreError(
                f"{str(path)!r} is a score of {plain(score.split)!r}, not of {split!r}"
            )
        return [(path, [score])]
    if not path.is_dir():
        raise ScoreError(
            f"no run at {str(path)!r}; give run directories, folders of seeds, or score files"
        )
    folders = sorted(path.glob("seed-*/"), key=lambda p: (len(p.name), p.name)) or [path]
    return [(folder, _scores(folder, split)) for folder in folders]


def _scores(folder: Path, split: str) -> list[Score]:
    files = sorted((folder / "scores").glob("*.json"))
    found = [
        score for score in map(read_score, files) if score.split == split and score.artifact_sha256
    ]
    own = _json(folder / "card.json").get("artifact_sha256")
    found = [score for score in found if own is None or score.artifact_sha256 == own]
    if not found:
        raise ScoreError(
            f"{str(folder)!r} holds no score of its artifact on {split!r}; run niblick eval on it"
            " first"
        )
    return found


def _shared_mode(found: list[tuple[Path, Candidates]]) -> str | None:
    """The mode that every seed was scored in; the first run's own comes first. None if they share
    none.
    """
    everything = [{score.label for score in scores} for _, seeds in found for _, scores in seeds]
    shared = set.intersection(*everything)
    own = [score.label for score in found[0][1][0][1]]
    card = (
        _json(found[0][1][0][0] / "card.json").get("mode") if found[0][1][0][0].is_dir() else None
    )
    ordered = sorted(
        (label for label in own if label in shared),
        key=lambda label: not label.endswith(f"-{card}"),
    )
    return ordered[0] if ordered else None


def _choose(folder: Path, scores: list[Score], wanted: str | None) -> Seed:
    fitting = [score for score in scores if wanted is None or wanted in (score.label, score.mode)]
    if not fitting:
        known = ", ".join(sorted({plain(score.mode) for score in scores}))
        raise ScoreError(f"{str(folder)!r} has no score in mode {plain(wanted)!r}; it has: {known}")
    card = _json(folder / "card.json") if folder.is_dir() else {}
    ledger = card.get("ledger") if isinstance(card.get("ledger"), dict) else {}
    parts = (
        ledger.get("parts")
        if isinstance(ledger, dict) and isinstance(ledger.get("parts"), dict)
        else {}
    )
    return Seed(
        name=plain(folder.name),
        score=fitting[0],
        artifact_bytes=_whole(card.get("artifact_bytes")),
        train_seconds=_number(card.get("train_seconds")),
        curve=_curve(folder / "metrics.jsonl") if folder.is_dir() else [],
        ledger={
            plain(key): size
            for key, value in (parts or {}).items()
            if (size := _whole(value)) is not None
        },
    )


def _curve(path: Path) -> Curve:
    try:
        lines = path.read_text("utf-8", errors="replace").splitlines()
    except OSError:
        return []
    rows: Curve = []
    for line in lines:
        row = _parsed(line)
        values = [_number(row.get(key)) for key in ("seconds", "tokens", "loss")]
        if all(value is not None for value in values):
            rows.append((values[0] or 0.0, values[1] or 0.0, values[2] or 0.0))
    return rows


def _json(path: Path) -> dict[str, Any]:
    try:
        return _parsed(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError):
        return {}


def _parsed(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _number(value: object) -> float | None:
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if good and isinstance(value, int | float) else None


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _unique_names(paths: Sequence[Path]) -> list[str]:
    """Short names, whole paths where two would be the same, numbered where even those are."""
    short = [path.resolve().name or str(path) for path in paths]
    names = short if len(set(short)) == len(short) else [str(path) for path in paths]
    return [
        plain(name if names.count(name) == 1 else f"{name} #{i + 1}")
        for i, name in enumerate(names)
    ]
