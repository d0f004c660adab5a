"""The runs below some folders, and what is to be shown of each: JSON-ready, texts as they are.

A run is a folder that holds a recipe.toml. Links are not followed. A file that is damaged or too
long leaves out what it would have told.
"""

from __future__ import annotations

import os
import time
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from niblick.dashboard.curves import Metrics, is_regular
from niblick.errors import NiblickError
from niblick.files import finite, read_json
from niblick.limits import MAX_RECIPE_BYTES, MAX_TEXT
from niblick.scoring.markup import plain
from niblick.units import Duration

Json = dict[str, Any]

MAX_RUNS = 200
_DEPTH = 3
_RECENT = 30  # seconds since the last row of a run that is taken to go on
_OF_A_RUN = ("environment.json", "metrics.jsonl", "card.json")
_PASSED = {"checkpoints", "scores", "tensorboard", "wandb"}
_MACHINE = (
    ("processor", "processor"),
    ("available_cpus", "processors"),
    ("threads", "threads"),
    ("cuda", "GPU"),
    ("platform", "system"),
    ("python", "Python"),
    ("torch", "torch"),
    ("niblick", "niblick"),
)
_LATEST = ("step", "tokens", "seconds", "loss", "bpb", "tokens_per_second", "resident_bytes")


class Run:
    """One run directory and what was read of it."""

    def __init__(self, name: str, path: Path) -> None:
        self.name, self.path = name, path
        self.metrics = Metrics(path / "metrics.jsonl")
        self._kept: dict[str, tuple[tuple[int, int], Json]] = {}

    @property
    def changed(self) -> float:
        """When its metrics or recipe were last written, in seconds of the system's clock."""
        stamps = (_stamp(self.path / name) for name in ("metrics.jsonl", "recipe.toml"))
        return next((stamp[0] / 1e9 for stamp in stamps if stamp[1] >= 0), 0.0)

    def summary(self) -> Json:
        """One row of the list of runs."""
        self.metrics.refresh()
        recipe, card, rows = self._recipe(), self._json("card.json"), self.metrics.training
        latest = {name: rows.last(name) for name in _LATEST}
        fraction = _fraction(recipe, latest)
        card_stamp = _stamp(self.path / "card.json")
        return {
            "id": self.name,
            "recipe": _text(recipe.get("name")),
            "seed": finite(recipe.get("seed", 0)),
            "state": self._state(bool(card), fraction),
            "age": max(0.0, time.time() - self.changed),
            "fraction": fraction,
            **latest,
            "validation_bpb": self.metrics.validation.last("validation_bpb"),
            "packed_bpb": finite(card.get("packed_bpb")),
            "valid": card.get("valid") is not False,
            "artifact_bytes": finite(card.get("artifact_bytes")),
            "parameters": finite(card.get("parameters")),
            "revision": f"{self.metrics.revision}-{card_stamp[0]}",
        }

    def details(self) -> Json:
        """Curves, machine, bytes by part and card."""
        self.metrics.refresh()
        card, environment = self._json("card.json"), self._json("environment.json")
        parts = _table(_table(card.get("ledger")).get("parts"))
        sizes = {_text(part): finite(size) for part, size in list(parts.items())[:64]}
        return {
            "id": self.name,
            "training": self.metrics.training.points(),
            "validation": self.metrics.validation.points(),
            "machine": [
                [label, _text(environment[key])]
                for key, label in _MACHINE
                if environment.get(key) not in (None, [], "")
            ],
            "bytes": {part: size for part, size in sizes.items() if size},
            "card": _card_rows(card),
        }

    def _state(self, scored: bool, fraction: float | None) -> str:
        """`training`, `packing`, `scored` or `stopped`; a card of an earlier run does not count."""
        card, metrics = _stamp(self.path / "card.json"), _stamp(self.path / "metrics.jsonl")
        if scored and card[0] >= metrics[0]:
            return "scored"
        if not _written(self.path) and time.time() - self.changed > _RECENT:
            return "stopped"
        return "packing" if fraction is not None and fraction >= 1 else "training"

    def _recipe(self) -> Json:
        path = self.path / "recipe.toml"
        return self._read(path.name, lambda: tomllib.loads(_short_text(path)))

    def _json(self, name: str) -> Json:
        return self._read(name, lambda: read_json(self.path / name))

    def _read(self, name: str, read: Any) -> Json:
        stamp = _stamp(self.path / name)
        if name not in self._kept or self._kept[name][0] != stamp:
            try:
                self._kept[name] = stamp, read() if is_regular(self.path / name) else {}
            except (NiblickError, OSError, ValueError, RecursionError):
                self._kept[name] = stamp, {}
        return self._kept[name][1]


class Watch:
    """The runs below `roots`, looked for at each call of `refresh`."""

    def __init__(self, roots: Sequence[Path]) -> None:
        self.roots = tuple(roots)
        self.runs: dict[str, Run] = {}
        self.left_out = 0

    def refresh(self) -> None:
        """Find new runs and forget what is gone; of more than `MAX_RUNS` the newest stay."""
        found: dict[str, Run] = {}
        for root in self.roots:
            for path in _run_folders(root, _DEPTH):
                name = plain(path.relative_to(root).as_posix())
                name = root.resolve().name if name == "." else name
                if len(self.roots) > 1:
                    name = f"{plain(root)}/{name}"
                known = self.runs.get(name)
                found[name] = known if known and known.path == path else Run(name, path)
        newest = sorted(found.values(), key=lambda run: -run.changed)
        self.left_out = max(0, len(newest) - MAX_RUNS)
        self.runs = {run.name: run for run in newest[:MAX_RUNS]}


def _run_folders(folder: Path, depth: int) -> Iterator[Path]:
    if is_regular(folder / "recipe.toml") and not _is_variant(folder):
        yield folder
    if not depth:
        return
    try:
        with os.scandir(folder) as entries:
            inner = [e.name for e in entries if e.is_dir(follow_symlinks=False)]
    except OSError:
        return
    for name in sorted(inner):
        if name not in _PASSED and not name.startswith("."):
            yield from _run_folders(folder / name, depth - 1)


def _is_variant(folder: Path) -> bool:
    """Whether a sweep keeps the recipe of a variant there, whose runs lie below."""
    return not any((folder / name).exists() for name in _OF_A_RUN)


def _written(path: Path) -> bool:
    """Whether a process holds the lock of the run's writer, where the system lists its locks.

    (Trying to take the lock could get in the way of a run that starts.)
    """
    try:
        inode = (path / ".lock").stat().st_ino
        locks = Path("/proc/locks").read_text("ascii").splitlines()
    except (OSError, ValueError):
        return False
    return any(line.split()[5].endswith(f":{inode}") for line in locks if len(line.split()) > 5)


def _stamp(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError:
        return 0, -1
    return found.st_mtime_ns, found.st_size


def _short_text(path: Path) -> str:
    with path.open("rb") as file:
        data = file.read(MAX_RECIPE_BYTES + 1)
    if len(data) > MAX_RECIPE_BYTES:
        raise ValueError("too long for a recipe")
    return data.decode("utf-8")


def _fraction(recipe: Json, latest: Json) -> float | None:
    """How much of the training budget is spent."""
    duration = _table(recipe.get("training")).get("duration")
    if not isinstance(duration, str) or latest["step"] is None:
        return None
    try:
        budget = Duration.parse(duration)
    except NiblickError:
        return None
    at = {name: latest[name] or 0 for name in ("seconds", "step", "tokens")}
    spent = budget.fraction(seconds=at["seconds"], steps=int(at["step"]), tokens=int(at["tokens"]))
    return min(1.0, spent)


def _card_rows(card: Json) -> list[list[str]]:
    """What a card says first, as label and text."""
    data = _table(card.get("data"))
    rows = [
        ("packed bits per byte", _shown(card.get("packed_bpb"), ".4f")),
        ("float bits per byte", _shown(card.get("float_bpb"), ".4f")),
        ("artifact", f"{_shown(card.get('artifact_bytes'))} of {_shown(card.get('max_bytes'))}"),
        ("parameters", _shown(card.get("parameters"))),
        ("bits per parameter", _shown(card.get("bits_per_parameter"), ".2f")),
        ("training seconds", _shown(card.get("train_seconds"))),
        ("training steps", _shown(card.get("train_steps"))),
        ("training tokens", _shown(card.get("train_tokens"))),
        ("scored on", f"{_text(data.get('corpus'))} {_text(card.get('split'))}"),
        ("mode", _text(card.get("mode"))),
        ("tokenizer", _text(data.get("tokenizer"))),
        *(
            (f"compressor {_text(name)}", _shown(value, ".4f"))
            for name, value in list(_table(card.get("baselines")).items())[:16]
        ),
    ]
    if card.get("valid") is False:
        reason = _text(_table(card.get("details")).get("reason") or "see its card.json")
        rows.insert(0, ("NOT VALID", reason))
    return [list(row) for row in rows] if card else []


def _shown(value: object, form: str = ",.0f") -> str:
    found = finite(value)
    return "-" if found is None else format(found, form)


def _text(value: object) -> str:
    if isinstance(value, list):
        value = ", ".join(str(each)[:200] for each in value[:16])
    return "" if value is None else plain(str(value)[:MAX_TEXT])[:300]


def _table(value: object) -> Json:
    return value if isinstance(value, dict) else {}
