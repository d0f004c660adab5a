"""`niblick train pocket --data ...`: a text of one's own becomes a run, its card and its words."""

from __future__ import annotations

import io
import json
import random
import sys
from pathlib import Path

import pytest

from commands import run
from niblick.data.dataset import open_dataset
from niblick.recipe import load_recipe

WORDS = [f"{a}{b}{c}" for a in "bdfgk" for b in "aeiou" for c in ("l", "n", "rst", "mp", "s")]
SMALL = (
    *("--set", "model.dim=64", "--set", "model.bigram.buckets=64", "--set", "training.threads=1"),
    *("--set", "training.compile=off", "--set", "training.precision=fp32"),
    *("--set", "artifact.codec=int-zlib", "--set", "training.qat.enabled=false"),
    *("--duration", "2 steps"),
)


def prose(seed: int, size: int) -> str:
    """Words in sentences, about `size` characters of them."""
    draw = random.Random(seed)
    text = ""
    while len(text) < size:
        text += " ".join(draw.choices(WORDS, k=9)) + draw.choice((". ", ".\n\n"))
    return text


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of several kinds of text, 90 kB."""
    folder = tmp_path_factory.mktemp("my-folder")
    for number in range(30):
        suffix = (".txt", ".md", ".rst", ".py", ".html")[number % 5]
        (folder / f"{number}{suffix}").write_text(prose(number, 3000), "utf-8")
    return folder


@pytest.fixture(scope="module")
def trained(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on that folder."""
    place = tmp_path_factory.mktemp("runs") / "run"
    assert run("train", "pocket", "--data", str(texts), "--out", str(place), *SMALL) == 0
    return place


def test_the_card_describes_the_run_and_warns_of_private_text(trained: Path, texts: Path) -> None:
    card = json.loads((trained / "card.json").read_text())
    words = (trained / "card.md").read_text()
    assert card["data"]["corpus"] == texts.name and card["data"]["own"]
    assert texts.name in card["description"] and "wiki-vital" not in words
    assert "repeat passages" in words
    assert {"xz -9e", "zstd -22"} <= set(card["baselines"])
    low, high = card["details"]["interval"]
    assert low < card["bpb"] < high and "95 % interval" in words.splitlines()[6]


def test_the_resolved_recipe_repeats_the_run_without_the_choices(
    trained: Path, tmp_path: Path
) -> None:
    again = tmp_path / "again"
    assert run("train", str(trained / "recipe.toml"), "--out", str(again)) == 0
    first, second = (json.loads((p / "card.json").read_text()) for p in (trained, again))
    for key in ("artifact_sha256", "bpb", "data_sha256", "tokenizer_sha256"):
        assert first[key] == second[key]


def test_a_model_s_tokenizer_is_exported_and_reads_other_text(
    trained: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    artifact = str(trained / "artifact.nib")
    assert run("export", artifact, "--to", "tokenizer", "--out", "own.model") == 0
    assert run("export", artifact, "--to", "tokenizer", "--out", "own.model") == 2
    hashes = set()
    for number, name in enumerate((artifact, str(trained), "own.model")):
        out = f"shards-{number}"
        assert run("data", "prepare", str(texts), "--tokenizer", name, "--out", out) == 0
        hashes.add(open_dataset(out).sha256("train"))
    assert len(hashes) == 1
    (tmp_path / "mine.txt").write_text(prose(99, 1000))
    assert run("eval", artifact, "--data", "mine.txt") == 0


def test_standard_input_is_a_text_and_too_little_of_it_gets_no_score(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stdin = io.TextIOWrapper(io.BytesIO(prose(1, 20_000).encode()))
    monkeypatch.setattr(sys, "stdin", stdin)
    out = tmp_path / "run"
    assert run("train", "pocket", "--data", "-", "--out", str(out), *SMALL) == 0
    words = capsys.readouterr()
    assert "vocabulary 512: with 1" in words.err and "no score" in words.out.splitlines()[0]
    assert "bits per byte" not in words.out
    card = json.loads((out / "card.json").read_text())
    assert not card["valid"] and "held-out text are too few" in card["details"]["reason"]


def test_data_prepare_takes_the_recipe_s_vocabulary_and_names_the_next_command(
    texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "shards"
    given = ("--recipe", "pocket", "--vocab-size", "400")
    assert run("data", "prepare", str(texts), "--out", str(out), *given) == 0
    assert f"niblick train pocket --data {out}" in capsys.readouterr().err
    place = tmp_path / "run"
    assert run("train", "pocket", "--data", str(out), "--out", str(place), *SMALL) == 0
    recipe = load_recipe(place / "recipe.toml")
    assert recipe.model.vocab_size == 400 and recipe.data.corpus == str(out)
    assert "vocabulary 400: that of the tokenizer" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        (None, (), "neither a path"),
        ("", (), "no documents"),
        ("few words", (), "too few to train on"),
        (b"\xff\xfe", (), "not UTF-8"),
        ("some words\n" * 9, ("--tokenizer", "no-such.model"), "cannot be read"),
        ("some words\n" * 9, ("--set", "nonsense=1"), "unknown key 'nonsense'"),
        ("some words\n" * 9, ("--resume", "x"), "--resume RUN takes everything"),
    ],
)
def test_what_cannot_be_trained_on_is_one_line_and_leaves_nothing(
    content: str | bytes | None,
    arguments: tuple[str, ...],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    out = ("--out", str(tmp_path / "run")) if "--resume" not in arguments else ()
    assert run("train", "pocket", "--data", str(path), *out, *arguments) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert message in lines[-1] and len(lines) <= 1


def test_a_run_is_never_trained_over_with_another_text(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other.txt").write_text(prose(5, 9000))
    before = (trained / "data" / "manifest.json").read_bytes()
    other = str(tmp_path / "other.txt")
    assert run("train", "pocket", "--data", other, "--out", str(trained)) == 2
    assert "holds a run" in capsys.readouterr().err
    assert (trained / "data" / "manifest.json").read_bytes() == before


def test_a_text_that_is_refused_leaves_nothing_in_the_way_of_another(
    tmp_path: Path, texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short, place = tmp_path / "short.txt", tmp_path / "run"
    short.write_text("a few words", "utf-8")
    assert run("train", "pocket", "--data", str(short), "--out", str(place), *SMALL) == 2
    assert "too few to train on" in capsys.readouterr().err
    assert run("train", "pocket", "--data", str(texts), "--out", str(place), *SMALL) == 0
    assert f"try it: niblick generate {place}" in capsys.readouterr().err
