"""`niblick sweep` on a small text: keeps what is finished, goes on after any end, gives up what is
behind, refuses what it cannot do.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from niblick.cli import main

FLOAT = ["--score", "float", "--duration", "8 steps"]
RATE = "fast: training.muon.lr=0.05"


def arguments(recipe: Path, *more: str) -> list[str]:
    return ["sweep", str(recipe), "--out", str(recipe.parent / "out"), "--seeds", "1", *more]


def swept(command: list[str], capsys: pytest.CaptureFixture[str], code: int = 0) -> dict[str, Any]:
    with pytest.raises(SystemExit) as caught:
        main([*command, "--json"])
    captured = capsys.readouterr()
    assert (caught.value.code or 0) == code, captured.err
    found: dict[str, Any] = json.loads(captured.out)
    return found


def refused(command: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(command)
    captured = capsys.readouterr()
    assert caught.value.code in (1, 2) and words in captured.err and captured.out == ""


def times(folder: Path) -> list[int]:
    return [path.stat().st_mtime_ns for path in sorted(folder.glob("out/*/seed-0/scores/*"))]


def pretend(folder: Path, curve: list[float]) -> None:
    """A finished run's files, as far as a sweep reads them."""
    (folder / "scores").mkdir(parents=True)
    (folder / "scores" / "validation-x.json").write_text(
        json.dumps({"bpb": curve[-1], "valid": True, "artifact_sha256": None})
    )
    rows = (
        {"step": 20 * n, "seconds": 1.0, "tokens": 1, "validation_bpb": bpb}
        for n, bpb in enumerate(curve, 1)
    )
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_variants_come_from_text_from_a_file_and_by_leaving_out(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = recipe.parent / "variants.toml"
    table.write_text("[small.model]\nsmear.enabled = false\n")
    command = arguments(recipe, *FLOAT, "--variants", str(table), "--variant", RATE)
    found = swept([*command, "--without", "bigram"], capsys)
    names = [row["variant"] for row in found["variants"]]
    assert names == ["baseline", "small", "fast", "without-bigram"]
    assert found["complete"] and found["split"] == "development"
    assert all(row["tokens"] == 8 * 256 for row in found["variants"])
    whole, small = found["variants"][:2]
    assert whole["parameters"] - small["parameters"] == 32 and whole["artifact_bytes"] is None
    assert not list((recipe.parent / "out").glob("*/seed-0/artifact.nib"))
    before = times(recipe.parent)
    assert swept([*command, "--without", "bigram"], capsys) == found
    assert len(before) == 4 and times(recipe.parent) == before


def test_variants_of_a_file_hold_what_toml_holds_and_no_name_comes_twice(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = recipe.parent / "variants.toml"
    table.write_text(
        '[deep]\n[[deep.model.stack]]\nlayers = ["full*3"]\n[deep.training]\nmuon.lr = 0.05\n'
        '[said]\ndescription = "na\u00efve \U0001f600"\n'
    )
    found = swept([*arguments(recipe, *FLOAT), "--variants", str(table)], capsys)
    assert [row["variant"] for row in found["variants"]] == ["baseline", "deep", "said"]
    kept = [(recipe.parent / "out" / name / "recipe.toml").read_text() for name in ("deep", "said")]
    assert '["full*3"]' in kept[0] and "\U0001f600" in kept[1]
    for more in (["--variant", "deep: model.dim=64"], ["--variant", RATE, "--variant", RATE]):
        command = [*arguments(recipe, *FLOAT), "--variants", str(table), *more]
        refused(command, "is given twice", capsys)
    table.write_text("[a.data]\ncorpus = 2020-01-01\n")
    refused([*arguments(recipe, *FLOAT), "--variants", str(table)], "data.corpus", capsys)


def test_packed_runs_side_by_side_are_compared_by_their_files(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = arguments(recipe, "--duration", "4 steps", "--variant", RATE)
    found = swept([*command, "--jobs", "2"], capsys)
    card = json.loads((recipe.parent / "out/fast/seed-0/card.json").read_text())
    assert found["variants"][1]["bpb"]["mean"] == card["packed_bpb"]
    assert found["variants"][1]["artifact_bytes"] == card["artifact_bytes"]
    refused([*command, "--set", "training.clip=0.2"], "holds runs of another recipe", capsys)


def test_a_sweep_that_was_killed_goes_on_where_it_was(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = arguments(recipe, *FLOAT, "--variant", RATE)
    started = [sys.executable, "-m", "niblick", *command]
    with subprocess.Popen(started, stderr=subprocess.PIPE) as run:
        assert run.stderr is not None
        for line in run.stderr:
            if b"fast, seed 0" in line:
                break
        os.kill(run.pid, signal.SIGKILL)
    before = times(recipe.parent)
    found = swept(command, capsys)
    assert found["complete"] and [row["seeds"] for row in found["variants"]] == [[0], [0]]
    assert times(recipe.parent)[: len(before)] == before != []


def test_time_that_is_up_ends_it_undecided(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = arguments(recipe, *FLOAT, "--without", "smear", "--budget", "0.001s")
    found = swept(command, capsys, code=3)
    assert not found["complete"] and found["split"] == "development"
    assert [row["note"] for row in found["variants"]] == ["not finished"] * 2


def test_a_run_that_is_behind_is_stopped_and_one_that_fails_is_named(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = recipe.parent / "out"
    for seed, level in enumerate((0.05, 0.06)):
        pretend(out / "baseline" / f"seed-{seed}", [level + 0.1, level])
        pretend(out / "fast" / f"seed-{seed}", [level + 0.101, level - 0.001 * seed])
    more = ["--variant", RATE, "--variant", "slow: training.muon.lr=0.01"]
    more += ["--variant", "wrong: data.tokenizer=nowhere.model", "--stop-from", "0.5"]
    command = arguments(recipe, "--score", "float", "--duration", "1000 steps", *more)
    found = swept([*command, "--seeds", "2"], capsys, code=1)
    assert found["variants"][2]["note"] == "behind: stopped at 50% of seed 0"
    assert found["variants"][3]["note"] == "failed"
    assert found["variants"][1]["difference"]["mean"] == pytest.approx(-0.0005)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ([], "give --variant, --variants or --without NAME (`niblick techniques /"),
        (["--without", "sidecar"], "tiny does not use the technique 'sidecar'"),
        (["--variant", "x"], "is not like"),
        (["--variant", "a/b: seed=1"], "letters, digits"),
        (["--variant", "baseline: training.clip=1.0"], "is the name of the recipe itself"),
        (["--variant", "a: training.clip=0.3"], "same recipe as 'baseline'"),
        (["--variant", "a: training.clipp=0.3"], "training.clip"),
        (["--variant", 'a: training.duration="9 steps"'], "all train equally long"),
        (["--variant", "a: training.batch_tokens=512"], "equal steps are not equal tokens"),
        (["--variant", "a: seed=3"], "one row of seeds"),
        (["--variant", RATE, "--score", "half"], "neither packed nor float"),
        (["--variant", RATE, "--budget", "5 steps"], "is not a time"),
        (["--variants", "nothing.toml"], "nothing.toml"),
        (["--variant", RATE, "--duration", "9s", "--jobs", "2"], "in steps or tokens, not '9s'"),
        (["--variant", RATE, "--executor", "nowhere:pool"], "--executor 'nowhere:pool'"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_runs(
    recipe: Path, more: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(arguments(recipe, *more), words, capsys)
    assert not (recipe.parent / "out").exists()


def test_a_failing_baseline_ends_it_with_the_runs_last_line(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = ["--variant", RATE, "--set", "data.corpus=/nowhere/at/all"]
    refused(arguments(recipe, *wrong), "nowhere/at/all", capsys)


def test_ablate_is_the_same_command_on_the_validation_split(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = arguments(recipe, *FLOAT, "--without", "smear", "--budget", "0.001s")
    found = swept(["ablate", *command[1:]], capsys, code=3)
    assert found["split"] == "validation"
    assert [row["variant"] for row in found["variants"]] == ["baseline", "without-smear"]
