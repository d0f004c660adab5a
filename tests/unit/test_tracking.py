"""`--track`: trackers get what metrics.jsonl holds, and cannot harm a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar

import pytest

from niblick.cli import main
from niblick.data.dataset import Dataset
from niblick.errors import NiblickError
from niblick.report.tracking import FIGURES, TRACKERS, TrackedRun, check_trackers, tracked
from niblick.runtime import World
from niblick.training import train
from training_runs import digest, run, tiny_dataset, tiny_recipe


@TRACKERS.register("kept-in-memory")
class Kept:
    """Keeps what it is told; fails from step `fails` on."""

    package = "json"
    rows: ClassVar[list[tuple[int, dict[str, float]]]] = []
    figures: ClassVar[list[dict[str, float]]] = []
    fails = 99

    def __init__(self, run: TrackedRun) -> None:
        print("a banner")
        self.rows.clear()
        self.figures.clear()

    def log(self, step: int, values: dict[str, float]) -> None:
        if step >= self.fails:
            raise ConnectionError("no route\nto host")
        self.rows.append((step, values))

    def finish(self, figures: dict[str, float]) -> None:
        self.figures.append(figures)


@TRACKERS.register("not-here")
class NotHere(Kept):
    """Needs what no one has."""

    package = "niblick_needs_no_such_package"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny_dataset(tmp_path_factory.mktemp("data") / "shards")


def _tracked_run(dataset: Dataset, out: Path, said: list[str]) -> str:
    recipe = tiny_recipe()
    with tracked(["kept-in-memory"], TrackedRun(folder=out, recipe=recipe), said.append) as all_:
        result = train(recipe, dataset, out, world=World(), track=all_.log)
        all_.take_card(dict.fromkeys(FIGURES, 2))
    return digest(result)


def test_a_tracker_gets_every_row_and_the_card_and_standard_output_stays_free(
    dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said: list[str] = []
    _tracked_run(dataset, tmp_path / "run", said)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [step for step, _ in Kept.rows] == [row["step"] for row in rows]
    for (_, values), row in zip(Kept.rows, rows, strict=True):
        assert values["budget/tokens"] == row["tokens"] and len(values) == len(row) - 1
        if "loss" in row:
            assert values["train/loss"] == row["loss"]
            assert values["optimizer/lr_matrix"] == row["lr_matrix"]
            assert values["machine/resident_bytes"] == row["resident_bytes"]
        else:
            assert values["validation/bpb"] == row["validation_bpb"]
            assert values["validation/loss"] == row["validation_loss"]
    assert Kept.figures == [dict.fromkeys(FIGURES, 2.0)] and not said
    captured = capsys.readouterr()
    assert not captured.out and "a banner" in captured.err


def test_a_tracker_that_fails_is_given_up_and_the_run_ends_in_the_same_bits(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Kept, "fails", 3)
    said: list[str] = []
    tracked_bits = _tracked_run(dataset, tmp_path / "tracked", said)
    assert tracked_bits == digest(run(tiny_recipe(), dataset, tmp_path / "alone"))
    assert [step for step, _ in Kept.rows] == [1, 2] and not Kept.figures
    assert len(said) == 1 and "given up (no route to host); metrics.jsonl" in said[0]


def test_a_run_that_stops_ends_its_trackers_without_figures(tmp_path: Path) -> None:
    with (
        pytest.raises(KeyError),
        tracked(["kept-in-memory"], TrackedRun(folder=tmp_path, recipe=tiny_recipe()), print),
    ):
        raise KeyError
    assert Kept.figures == [{}]


def test_a_missing_package_names_the_command_that_installs_it() -> None:
    with pytest.raises(NiblickError, match=r"run: pip install 'niblick\[not-here\]'$"):
        check_trackers(["kept-in-memory", "not-here"])
    assert check_trackers(["kept-in-memory"] * 2) == ("kept-in-memory",)


@pytest.mark.parametrize("name", ["nope", "not-here"])
def test_a_tracker_that_cannot_be_is_one_line_before_anything_is_made(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["train", "pocket", "--track", name, "--out", str(tmp_path / "run")])
    told = capsys.readouterr().err
    assert end.value.code == 2 and len(told.splitlines()) == 1 and name in told
    assert not (tmp_path / "run").exists()


def test_a_seed_is_named_with_its_parent(tmp_path: Path) -> None:
    names = [
        TrackedRun(folder=tmp_path / path, recipe=tiny_recipe()).name
        for path in ("pocket-1", "pocket-2/seed-0")
    ]
    assert names == ["pocket-1", "pocket-2/seed-0"]
