"""What tensorboard, wandb and trackio have kept of a run is what metrics.jsonl holds."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest

from niblick.report.tracking import FIGURES, TrackedRun, tracked
from niblick.runtime import World
from niblick.training import train
from training_runs import tiny_dataset, tiny_recipe

pytestmark = pytest.mark.integration


def _run(name: str, tmp_path: Path) -> list[dict[str, float]]:
    """A run that is stopped nowhere, told to one tracker; its rows with a loss."""
    pytest.importorskip(name)
    recipe, out, said = tiny_recipe(), tmp_path / "run", list[str]()
    dataset = tiny_dataset(tmp_path / "shards")
    with tracked([name], TrackedRun(folder=out, recipe=recipe), said.append) as trackers:
        train(recipe, dataset, out, world=World(), track=trackers.log)
        trackers.take_card(dict.fromkeys(FIGURES, 1.5))
    assert said == []
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "loss" in row]


def test_tensorboard_holds_every_value(tmp_path: Path) -> None:
    rows = _run("tensorboard", tmp_path)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    kept = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    kept.Reload()
    for name, key in (("train/loss", "loss"), ("optimizer/grad_norm", "grad_norm")):
        found = [(event.step, event.value) for event in kept.Scalars(name)]
        assert found == [(row["step"], pytest.approx(row[key], rel=1e-6)) for row in rows]
    assert len(kept.Scalars("validation/bpb")) == 4
    assert kept.Scalars("card/packed_bpb")[0].value == 1.5


def test_wandb_keeps_every_value_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    rows = _run("wandb", tmp_path)
    (file,) = (tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb")
    data = file.read_bytes()
    told = [json.dumps(row["loss"]).encode() in data for row in rows]
    assert sum(told) >= len(rows) - 1, "at most one value lies across two blocks of the file"


def test_trackio_keeps_every_value_on_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "kept"))
    rows = _run("trackio", tmp_path)
    (file,) = (tmp_path / "kept").glob("*.db")
    with sqlite3.connect(file) as database:
        found = database.execute("select step, metrics from metrics order by id").fetchall()
    kept = [(step, json.loads(text)) for step, text in found]
    losses = [(step, values["train/loss"]) for step, values in kept if "train/loss" in values]
    assert losses == [(row["step"], row["loss"]) for row in rows]
