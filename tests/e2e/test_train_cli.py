"""From a recipe to a card through the command line, on a corpus of a few kilobytes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from commands import run
from niblick.codecs import CODECS, RoundingSpec
from niblick.plan import Plan
from niblick.recipe import Recipe


def test_train_leaves_a_whole_run_directory_and_prints_its_card_as_json(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("train", str(recipe), "--out", "run", "--json") == 0
    card = json.loads(capsys.readouterr().out)
    folder = recipe.parent / "run"
    for name in (
        "recipe.toml",
        "environment.json",
        "metrics.jsonl",
        "artifact.nib",
        "card.json",
        "card.md",
    ):
        assert (folder / name).is_file(), name
    assert list((folder / "checkpoints").iterdir()) and list((folder / "scores").glob("*.json"))
    assert card == json.loads((folder / "card.json").read_text())
    for key in (
        "bpb",
        "nats_per_token",
        "tokens",
        "bytes",
        "seconds",
        "mode",
        "data_sha256",
        "artifact_sha256",
        "valid",
        "recipe",
        "parameters",
        "artifact_bytes",
        "train_seconds",
        "train_tokens",
        "float_bpb",
        "packed_bpb",
        "techniques",
        "baselines",
    ):
        assert key in card, key
    assert card["artifact_bytes"] == (folder / "artifact.nib").stat().st_size
    assert card["train_tokens"] == 6 * 256


def test_without_packing_it_ends_with_the_float_score_and_can_be_packed_later(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("train", str(recipe), "--out", "run", "--no-pack", "--json") == 0
    score, folder = json.loads(capsys.readouterr().out), recipe.parent / "run"
    assert score["artifact_sha256"] is None and not (folder / "artifact.nib").exists()
    assert run("train", "--resume", "run", "--json") == 0
    card = json.loads(capsys.readouterr().out)
    assert card["float_bpb"] == score["bpb"] and (folder / "artifact.nib").is_file()
    assert run("train", str(recipe), "--no-pack", "--seeds", "2") == 2
    assert "--no-pack trains one seed" in capsys.readouterr().err


def test_a_card_says_that_the_development_split_was_scored(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--set", "data.development=true", "--set", "data.share=0.5", "--json"]
    assert run("train", str(recipe), "--out", "run", *more) == 0
    corpus = json.loads(capsys.readouterr().out)["data"]["corpus"]
    assert corpus == "corpus (0.5 of its training text, development split)"


def test_a_scored_artifact_gives_the_same_score_again_from_the_file_alone(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("train", str(recipe), "--out", "run", "--json") == 0
    card = json.loads(capsys.readouterr().out)
    (recipe.parent / "run" / "artifact.nib").rename(recipe.parent / "moved.nib")
    assert run("eval", "moved.nib", "--json") == 0
    assert json.loads(capsys.readouterr().out)["bpb"] == pytest.approx(card["bpb"], abs=1e-4)


def test_several_seeds_are_summarised_and_finished_ones_are_kept(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = (
        "train",
        str(recipe),
        "--out",
        "runs",
        "--seeds",
        "2",
        "--duration",
        "2 steps",
        "--json",
    )
    assert run(*arguments) == 0
    first = json.loads(capsys.readouterr().out)
    assert first["seeds"] == [0, 1] and len(first["figures"]["packed_bpb"]["values"]) == 2
    before = (recipe.parent / "runs" / "seed-1" / "artifact.nib").stat().st_mtime_ns
    assert run(*arguments) == 0
    assert json.loads(capsys.readouterr().out) == first
    assert (recipe.parent / "runs" / "seed-1" / "artifact.nib").stat().st_mtime_ns == before
    assert run(*arguments, "--set", "model.dim=48", "--seeds", "3") == 2
    assert "holds a run of another recipe" in capsys.readouterr().err
    arguments = (*arguments[:3], "side-by-side", *arguments[4:], "--jobs", "2")
    assert run(*arguments) == 0
    beside = json.loads(capsys.readouterr().out)
    for name in ("packed_bpb", "float_bpb", "artifact_bytes"):
        assert beside["figures"][name]["values"] == first["figures"][name]["values"]
    assert (recipe.parent / "side-by-side" / "seed-1" / "log.txt").is_file()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("train", "nosuch"), 2, "shipped"),
        (("train", "{recipe}", "--set", "model.nosuch=1"), 2, "model.nosuch"),
        (("train", "{recipe}", "--duration", "soon"), 2, "soon"),
        (("train", "--resume", "nowhere"), 2, "nowhere"),
        (("train",), 2, "RECIPE"),
        (("train", "{recipe}", "--jobs", "2"), 2, "go with --seeds"),
        (("train", "{recipe}", "--seeds", "2", "--executor", "os:nothing"), 2, "is not like"),
        (("train", "{recipe}", "--max-bytes", "2000", "--out", "capped"), 1, "exceeds the cap"),
        (("train", "{recipe}", "--set", "data.corpus=empty"), 2, "empty"),
        (("train", "{recipe}", "--set", "training.batch_tokens=65536"), 2, "batch"),
        (("train", "{recipe}", "--set", "model.vocab_size=300"), 2, "300"),
        (
            (
                "train",
                "{recipe}",
                "--set",
                "evaluation.mode=sliding",
                "--set",
                "evaluation.stride=999",
            ),
            2,
            "stride 999 is longer than the context",
        ),
        (("eval", "{recipe}"), 2, "artifact"),
        (("card", "nowhere"), 2, "nowhere"),
        (("nosuch",), 2, "nosuch"),
    ],
)
def test_what_cannot_be_done_is_one_clear_line_and_an_exit_code(
    arguments: tuple[str, ...],
    code: int,
    said: str,
    recipe: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (recipe.parent / "empty").mkdir()
    assert run(*(argument.format(recipe=recipe) for argument in arguments)) == code
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("niblick: ")]
    assert len(errors) == 1 and said in errors[0]
    assert "Traceback" not in errors[0]


def test_an_artifact_far_over_its_cap_is_foreseen_before_training_and_the_cure_is_named(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("train", str(recipe), "--max-bytes", "2000", "--out", "capped") == 1
    assert "artifact.codec=rd" in capsys.readouterr().err
    assert not (recipe.parent / "capped" / "metrics.jsonl").exists()


class Deaf(type(CODECS["int-zlib"])):  # type: ignore[misc]
    """A codec that cannot tell training how it rounds."""

    name = "deaf"

    def rounding(self, recipe: Recipe, plan: Plan) -> dict[str, RoundingSpec]:
        return {}


def test_quantization_aware_training_that_the_codec_cannot_use_is_refused(
    recipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CODECS, "_entries", dict(CODECS._entries))
    CODECS.register("deaf")(Deaf())
    settings = ("--set", "artifact.codec=deaf", "--set", "training.qat.enabled=true")
    assert run("train", str(recipe), "--out", "run", "--duration", "2 steps", *settings) == 2
    said = capsys.readouterr().err
    assert "training.qat.enabled" in said and "artifact.codec 'deaf'" in said
    assert not (recipe.parent / "run" / "metrics.jsonl").exists()


def test_training_under_the_errors_of_a_codec_stands_in_metrics_and_on_the_card(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ("artifact.codec=rd", "training.qat.enabled=true", "training.qat.start=0.5")
    options = [part for setting in settings for part in ("--set", setting)]
    assert run("train", str(recipe), "--out", "run", "--json", *options) == 0
    card = json.loads(capsys.readouterr().out)
    assert card["qat"] == "under the codec's errors as noise"
    assert "late quantization-aware training" in str(card["techniques"]["quantization"])
    lines = (recipe.parent / "run" / "metrics.jsonl").read_text().splitlines()
    rounding = [row["rounding"] for row in map(json.loads, lines) if "rounding" in row]
    assert not rounding[0] and rounding[-1] and rounding == sorted(rounding)


def test_late_qat_of_too_few_passes_is_left_out_and_said(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ("artifact.codec=rd", "training.qat.enabled=true", "training.qat.min_passes=1000")
    options = [part for setting in settings for part in ("--set", setting)]
    assert (
        run("train", str(recipe), "--out", "run", "--json", "--duration", "4 steps", *options) == 0
    )
    printed = capsys.readouterr()
    assert "late QAT was left out, which pays from 1000 on" in printed.err
    card = json.loads(printed.out)
    assert card["qat"] == "left out; it pays from 1000 passes on"
    assert "quantization-aware" not in f"{card['techniques']} {card['new']}"
    for cap, few in ((7 * card["parameters"] // 40, True), (card["artifact_bytes"], False)):
        assert run("pack", "run", "--max-bytes", str(cap), "--out", "small.nib") == 0
        assert ("a smaller model, trained for such a cap" in capsys.readouterr().out) == few


def test_late_qat_for_which_there_is_no_time_is_left_out_and_said(
    recipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("niblick.report.run.estimate_seconds", lambda *_: 1.4)
    settings = ("--set", "artifact.codec=rd", "--set", "training.qat.enabled=true")
    assert run("train", str(recipe), "--out", "run", "--json", "--duration", "3s", *settings) == 0
    printed = capsys.readouterr()
    assert "no time to measure what packing will add" in printed.err
    assert json.loads(printed.out)["qat"] == "asked for; the time was too short"
