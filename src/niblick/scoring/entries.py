"""What `niblick compare` reads: runs, folders of seeds and score files, each as one entry with its
seeds.

Everything read here may come from somebody else: scores are checked, and of cards and metrics only
plain finite numbers are taken.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from niblick.artifact.load import shipped_file, shipped_models
from niblick.errors import ScoreError
from niblick.files import finite, sha256_file
from niblick.scoring.markup import plain
from niblick.scoring.score import Score, read_score, upgraded, without_engine
from niblick.scoring.score_text import own_settings

Curve = list[tuple[float, float, float]]


class ComparisonError(ScoreError):
    """What cannot be compared (exit code 2: the request is wrong, not a score)."""

    exit_code = 2


@dataclass(frozen=True)
class Seed:
    """One trained model: its score, and what its run recorded where there is a run.

    `curve` holds (seconds, tokens, nats per token) of training, `validation` (seconds, tokens, bits
    per byte) of held-out text; `ledger` bytes by part of the artifact; `folder` is the run's.
    """

    name: str
    score: Score
    artifact_bytes: int | None = None
    train_seconds: float | None = None
    curve: Curve = field(default_factory=list)
    validation: Curve = field(default_factory=list)
    ledger: dict[str, int] = field(default_factory=dict)
    folder: Path | None = None


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
    """An entry for each path, all of the same split: of each run the score of its recipe's own
    settings (in `mode`, where given).

    Where these settings differ from run to run and all were also scored alike, those scores are
    taken.
    """
    found = [[_candidates(seed, split, mode) for seed in _seeds(path)] for path in paths]
    shared = _shared_kind([seed for seeds in found for seed in seeds], alone=len(paths) == 1)
    names = _unique_names(paths)
    return [
        Entry(name, tuple(_seed(seed, shared) for seed in seeds))
        for name, seeds in zip(names, found, strict=True)
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
                raise ComparisonError(
                    f"different {label}: {plain(first_entry.name)}/{first.name} has {_short(here)},"
                    f" {plain(entry.name)}/{seed.name} has {_short(there)}; only scores of the same"
                    " text compare"
                )


def differing_settings(entries: Sequence[Entry]) -> dict[str, dict[str, list[Any]]]:
    """Setting -> entry -> its values, of the settings (mode first) that are not the same in all."""
    told = {
        entry.name: [
            {"mode": seed.score.mode, **without_engine(seed.score.settings)} for seed in entry.seeds
        ]
        for entry in entries
    }
    keys = dict.fromkeys(key for seeds in told.values() for seed in seeds for key in seed)
    values = {
        key: {name: _distinct([seed.get(key) for seed in seeds]) for name, seeds in told.items()}
        for key in keys
    }
    return {
        key: found
        for key, found in values.items()
        if len(_distinct([value for each in found.values() for value in each])) > 1
    }


def _distinct(values: Sequence[Any]) -> list[Any]:
    return [value for i, value in enumerate(values) if value not in values[:i]]


def _short(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else plain(str(value)[:12])


@dataclass(frozen=True)
class _Candidates:
    """The scores that a run, or a score file alone, offers; `own` are those of its recipe's own
    settings on the text of its card.
    """

    path: Path
    scores: list[Score]
    own: list[Score]


def _seeds(path: Path) -> list[Path]:
    """The runs in a folder of seeds, else the run or the file itself; of a shipped model its
    score.
    """
    if (shipped := shipped_file(path)) is not None:
        return [shipped.with_suffix(".score.json")]
    if not path.exists():
        raise ComparisonError(
            f"no run at {str(path)!r}; give run directories, folders of seeds, score files or"
            f" shipped models: {', '.join(shipped_models())}"
        )
    return sorted(path.glob("seed-*/"), key=lambda p: (len(p.name), p.name)) or [path]


def _candidates(path: Path, split: str, mode: str | None) -> _Candidates:
    if path.is_file():
        score = read_score(path)
        if score.split != split:
            raise ComparisonError(
                f"{str(path)!r} is a score of {plain(score.split)!r}, not of {split!r}"
            )
        return _Candidates(path, [score], [score])
    card = _card(path)
    scores = _scores(path, split, card)
    fitting = [score for score in scores if mode is None or mode in (score.label, score.mode)]
    if not fitting:
        known = ", ".join(sorted({plain(score.mode) for score in scores}))
        raise ComparisonError(
            f"{str(path)!r} has no score in mode {plain(mode)!r}; it has: {known}"
        )
    wanted = own_settings(path, mode)
    if wanted is None and card and mode in (None, card["mode"]):
        wanted = card["mode"], without_engine(card["settings"])
    text = card.get("data_sha256") if card.get("split") == split else None
    own = [
        score
        for score in fitting
        if wanted == (score.mode, without_engine(score.settings))
        and text in (None, score.data_sha256)
    ]
    asked = mode is not None or wanted is None
    return _Candidates(path, fitting, fitting if asked and not own and len(fitting) == 1 else own)


def _scores(folder: Path, split: str, card: dict[str, Any]) -> list[Score]:
    """Scores of the run's artifact, one of each kind: by the headline's engine where there are
    several.
    """
    artifact = card.get("artifact_sha256")
    if artifact is None and (folder / "artifact.nib").is_file():
        artifact = sha256_file(folder / "artifact.nib")
    engine = card.get("settings", {}).get("engine", "torch")
    found = [read_score(path) for path in sorted((folder / "scores").glob("*.json"))]
    found.sort(key=lambda score: score.settings.get("engine") == engine)
    kinds = {
        score.kind: score
        for score in found
        if score.split == split
        and score.artifact_sha256
        and artifact in (None, score.artifact_sha256)
    }
    if not kinds:
        raise ComparisonError(
            f"{str(folder)!r} holds no score of its artifact on {split!r}; run niblick eval on it"
            " first"
        )
    return list(kinds.values())


def _shared_kind(seeds: Sequence[_Candidates], *, alone: bool) -> str | None:
    """The one kind of score to take of all: what is some run's own where there is such, else,
    of several runs, the only one that all have.
    """
    shared = set.intersection(*({score.kind for score in seed.scores} for seed in seeds))
    for seed in seeds:
        kinds = {score.kind for score in seed.own} & shared
        if kinds:
            return kinds.pop() if len(kinds) == 1 else None
    return None if alone or len(shared) != 1 else shared.pop()


def _chosen(seed: _Candidates, shared: str | None) -> Score:
    if shared is not None:
        return next(score for score in seed.scores if score.kind == shared)
    if len(seed.own) == 1:
        return seed.own[0]
    what = "several scores" if seed.own else "no score"
    known = "; ".join(_described(score) for score in (seed.own or seed.scores)[:4])
    raise ComparisonError(
        f"{str(seed.path)!r} holds {what} of its recipe's own settings; it has {known}; run niblick"
        " eval on it, or give score files"
    )


def _described(score: Score) -> str:
    context, precision = score.settings.get("context"), score.settings.get("precision")
    return plain(f"{score.name} (context {context}, {precision}, data {_short(score.data_sha256)})")


def _seed(found: _Candidates, shared: str | None) -> Seed:
    folder = found.path
    card = _card(folder) if folder.is_dir() else {}
    ledger = card.get("ledger") if isinstance(card.get("ledger"), dict) else {}
    parts = (
        ledger.get("parts")
        if isinstance(ledger, dict) and isinstance(ledger.get("parts"), dict)
        else {}
    )
    return Seed(
        name=plain(folder.name),
        score=_chosen(found, shared),
        artifact_bytes=_whole(card.get("artifact_bytes")),
        train_seconds=finite(card.get("train_seconds")),
        curve=_curve(folder / "metrics.jsonl", "loss"),
        validation=_curve(folder / "metrics.jsonl", "validation_bpb"),
        folder=folder if folder.is_dir() else None,
        ledger={
            plain(key): size
            for key, value in (parts or {}).items()
            if (size := _whole(value)) is not None
        },
    )


def _card(folder: Path) -> dict[str, Any]:
    """The run's card in today's schema; empty where there is none that can be read."""
    card = _json(folder / "card.json")
    try:
        found = upgraded(card) if isinstance(card.get("mode"), str) else {}
        return found if isinstance(found.get("settings", {}), dict) else {}
    except TypeError:
        return {}


def _curve(path: Path, measure: str) -> Curve:
    try:
        lines = path.read_text("utf-8", errors="replace").splitlines()
    except OSError:
        return []
    rows: Curve = []
    for line in lines:
        row = _parsed(line)
        values = [finite(row.get(key)) for key in ("seconds", "tokens", measure)]
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
