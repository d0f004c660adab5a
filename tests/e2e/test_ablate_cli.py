"""`niblick ablate` on a folder of text: runs side by side, keeps what is finished, refuses what it
cannot do.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from niblick.cli import main

SETTINGS = [
    "data.tokenizer=bytes",
    "model.vocab_size=260",
    "model.dim=16",
    "model.context=32",
    "model.bigram.buckets=64",
    'model.stack.0.layers=["token-shift","full"]',
    "model.attention.heads=2",
    "model.attention.kv_heads=1",
    "model.attention.rope.dims=4",
    "model.value_embedding.enabled=false",
    "model.value_embedding.layers=[]",
    "training.sequence_length=32",
    "training.batch_tokens=128",
    "training.threads=1",
    "training.validation.tokens=64",
]


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for split, count in (("train", 30), ("validation", 3), ("test", 3)):
        for i in range(count):
            path = tmp_path / "text" / split / f"{i}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(
                f"{split} document {i}: the quick brown fox jumps over {i} lazy dogs and rests. "
                * 2
            )
    settings = [*SETTINGS, f"data.corpus={tmp_path / 'text'}"]
    options = [part for item in settings for part in ("--set", item)]
    return ["ablate", "pocket", *options, "--seeds", "1", "--out", str(tmp_path / "out")]


def test_variants_run_side_by_side_and_finished_ones_are_kept(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*arguments, "--without", "smear", "--duration", "3 steps", "--jobs", "2", "--json"]
    with pytest.raises(SystemExit) as first:
        main(command)
    assert not first.value.code
    found = json.loads(capsys.readouterr().out)
    assert [row["variant"] for row in found["variants"]] == ["baseline", "without-smear"]
    assert found["variants"][0]["parameters"] - found["variants"][1]["parameters"] == 16
    cards = sorted((tmp_path / "out").glob("*/seed-0/card.json"))
    written = [path.stat().st_mtime_ns for path in cards]
    with pytest.raises(SystemExit):
        main(command)
    assert json.loads(capsys.readouterr().out) == found
    assert len(cards) == 2 and [path.stat().st_mtime_ns for path in cards] == written
    refused([*command[:-3], "--duration", "4 steps"], "holds runs of another recipe", capsys)


def test_what_cannot_be_done_is_said_before_anything_runs(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(arguments, "give --without NAME; pocket uses: rotary", capsys)
    refused(
        [*arguments, "--without", "sidecar"], "pocket does not use the technique 'sidecar'", capsys
    )
    refused([*arguments, "--without", "smear", "--jobs", "2"], "in steps or tokens, not '", capsys)
    wrong = [
        *arguments,
        "--without",
        "smear",
        "--duration",
        "3 steps",
        "--executor",
        "nowhere:pool",
    ]
    refused(wrong, "--executor 'nowhere:pool'", capsys)
    assert not list((tmp_path / "out").glob("*/seed-0"))


def test_a_failing_run_ends_it_with_the_runs_last_line(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = [
        *arguments,
        "--without",
        "smear",
        "--duration",
        "3 steps",
        "--set",
        "data.corpus=/nowhere/at/all",
    ]
    refused(wrong, "nowhere/at/all", capsys)


def refused(command: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(command)
    assert caught.value.code in (1, 2)
    captured = capsys.readouterr()
    assert words in captured.err and captured.out == ""
