"""Every measured figure comes from docs/results.json, and none contradicts it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from datetime import date
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tools"))
import figure_plots
import figure_readers
import figures

MODELS = ROOT / "src" / "niblick" / "models"
PLOTS = [f"{name}-{scheme}.svg" for name in figure_plots.PLOTS for scheme in ("light", "dark")]


@pytest.fixture
def rows() -> dict[str, figures.Row]:
    return figures.read_rows()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """The pages alone, without a plot."""
    (tmp_path / "docs").mkdir()
    shutil.copy(ROOT / "README.md", tmp_path)
    for path in [*(ROOT / "docs").glob("*.md"), figures.RESULTS]:
        shutil.copy(path, tmp_path / "docs")
    return tmp_path


def test_pages_and_plots_are_what_the_rows_give_byte_for_byte(rows, tree: Path) -> None:
    changed = {path.name for path in figures.make(rows, tree)}
    assert changed == set(PLOTS), "make figures"
    for path in [tree / "README.md", *(tree / "docs").iterdir()]:
        assert path.read_bytes() == (ROOT / path.relative_to(tree)).read_bytes(), "make figures"
    assert figures.make(rows, tree) == []


def test_every_plot_of_the_rows_is_there_and_every_one_that_is_there_is_of_them() -> None:
    assert sorted(path.name for path in (ROOT / "docs").glob("*.svg")) == sorted(PLOTS)


def test_a_figure_that_was_changed_by_hand_is_found(rows, tree: Path) -> None:
    figures.make(rows, tree)
    readme = tree / "README.md"
    text = readme.read_text("utf-8")
    readme.write_text(text.replace(f"{rows['shipped']['values']['bpb']:.4f}", "1.2345"), "utf-8")
    assert list(figures.differing(rows, tree)) == [readme]


def test_a_new_value_reaches_pages_and_plots(rows, tree: Path) -> None:
    figures.make(rows, tree)
    values = figures.set_values(rows["shipped"], ["bpb=1.2345", "compressors.xz -9e=2.5"])
    figures.take(rows, "shipped", values, machine="a machine", commit="0123456", note="")
    changed = {path.name for path in figures.make(rows, tree)}
    assert changed == {"README.md", "measured.md", "bpb-light.svg", "bpb-dark.svg"}
    row = figures.read_rows(tree / "docs" / "results.json")["shipped"]
    assert row["values"]["compressors"]["xz -9e"] == 2.5 and "note" not in row
    assert (row["machine"], row["date"]) == ("a machine", date.today().isoformat())


def test_the_shipped_model_s_row_is_its_card_s(rows) -> None:
    card = json.loads((MODELS / "pocket.card.json").read_text("utf-8"))
    assert rows["shipped"]["values"] == figures.card_values(card)
    at = {each["bytes"]: each["bpb"] for each in rows["frontier"]["values"]["model"]}
    assert at[card["artifact_bytes"]] == round(card["packed_bpb"], 4)
    for name, bpb in card["baselines"].items():
        assert rows["frontier"]["values"]["compressors"][name][-1]["bpb"] == round(bpb, 4)


def test_the_readme_has_no_measured_figure_outside_its_blocks() -> None:
    text = figures.BLOCK.sub("", (ROOT / "README.md").read_text("utf-8"))
    prose = re.sub(
        r"```.*?```|\(.*?\)|Python 3\.11 to 3\.13|CC BY-SA 4\.0|Apache-2\.0",
        "",
        text,
        flags=re.DOTALL,
    )
    assert re.findall(r"\d[\d,.]*\d|\d+ ?(?:%|ms|MB|kB|bits|times)", prose) == []


def test_every_row_says_where_it_comes_from(rows) -> None:
    for name, row in rows.items():
        date.fromisoformat(row["date"])
        assert re.fullmatch(r"[0-9a-f]{7,}", row["commit"]), f"{name}: {row['commit']}"
        assert not re.search(r"/(home|root|tmp|work)/", json.dumps(row)), name


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--set", "shiped", "bpb=1"], "no row 'shiped'; there are: shipped"),
        (["--set", "shipped", "bqb=1"], "no 'bqb'; there are: bpb"),
        (["--set", "decoding", "9.ms=1"], "no '9.ms'"),
        (["--renew", "shipped"], "is made by `make shipped-model`"),
        (["--renew", "frontier"], "say what it is: RUN=..."),
    ],
)
def test_what_cannot_be_done_is_one_line(given: list[str], said: str) -> None:
    command = [sys.executable, str(ROOT / "tools" / "figures.py"), *given]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and said in done.stderr and done.stderr.count("\n") == 1


def test_a_row_without_its_machine_or_twice_is_refused(rows, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    figures.write_rows([rows["shipped"], rows["shipped"]], path)
    with pytest.raises(SystemExit, match="stands twice"):
        figures.read_rows(path)
    figures.write_rows([{**rows["shipped"], "machine": ""}], path)
    with pytest.raises(SystemExit, match="lacks machine"):
        figures.read_rows(path)


def test_what_benchmarks_print_becomes_the_columns_that_rows_have(rows) -> None:
    """Documents cut down from real ones."""
    cell = {"position": 1000, "ms": 0.6712}
    model = {"model": "token-shift", "bits": [2, 6], "state_bytes": 1_400_000, "positions": [cell]}
    peer = {"model": "Llama, 26,488,320 parameters", "engine": "llama.cpp Q6_K", **model}
    found = figure_readers.decoding({"models": [model], "peers": [{**model, **peer}]})
    assert [set(row) for row in found] == [set(rows["decoding"]["values"][0])] * 2
    assert found[0]["weights"] == "6 bits, random" and found[0]["ms"] == 0.671
    step = {
        "recipe": "pocket",
        "tokens_per_step": 4096,
        "tokens_per_second": 100.4,
        "ratio": 3.456,
        "utilisation": {"bf16": 0.6, "fp32": 0.9},
        "peak_mb": 527.3,
    }
    table = figure_readers.training([{**step, "tokens_per_second": 29.1}, step])
    assert set(table[0]) == set(rows["training"]["values"][0])
    assert (table[0]["plain"], table[0]["niblick"], table[0]["share"]) == (29, 100, 60)
    packer = {"name": "a", "size": 1, "bits": 2.0, "bpb": 1.5, "tax": 0.1, "encode_seconds": 3}
    assert figure_readers.packing({"rows": [packer]})[0].keys() == (
        rows["packing-pocket"]["values"][0].keys()
    )
