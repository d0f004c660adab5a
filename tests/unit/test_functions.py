"""niblick from Python: the page and the notebook run, imports are light, mistakes are one line."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

import niblick
from niblick.errors import NiblickError

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "python.md").read_text("utf-8")
NOTEBOOK = json.loads((ROOT / "examples" / "python.ipynb").read_text("utf-8"))
TINY = dict(re.findall(r"^```toml file=(\S+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the page supposes: a few texts under notes/, and its recipe."""
    place = tmp_path_factory.mktemp("python")
    (place / "notes").mkdir()
    words = sorted(set(re.findall("[a-z]+", PAGE)))
    for number in range(160):  # none of them so like another that both would be held out together
        text = " ".join(random.Random(number).choices(words, k=120))
        (place / "notes" / f"{number}.txt").write_text(text + "\n", "utf-8")
    for name, content in TINY.items():
        (place / name).write_text(content, "utf-8")
    return place


def test_the_page_runs_block_after_block(folder: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(folder)
    scope: dict[str, object] = {}
    for block in BLOCKS:
        exec(compile(block, "docs/python.md", "exec"), scope)  # noqa: S102
    said = capsys.readouterr().out
    for part in ("<niblick.Model 'pocket'", "<niblick.Score", "<niblick.Run 'first'", "'poket'"):
        assert part in said
    run = scope["run"]
    assert isinstance(run, niblick.Run)
    assert run.card == json.loads((folder / "first" / "card.json").read_text("utf-8"))
    assert run._repr_markdown_() == (folder / "first" / "card.md").read_text("utf-8")
    assert (folder / "notes-score.json").is_file()


def test_the_notebook_runs_and_is_stored_without_outputs(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    scope: dict[str, object] = {}
    cells = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
    assert cells and all(not cell["outputs"] for cell in cells)
    for number, cell in enumerate(cells):
        exec(compile("".join(cell["source"]), f"cell {number}", "exec"), scope)  # noqa: S102
    assert "mark" in str(getattr(scope["surprise"], "data", ""))


def test_importing_niblick_loads_nothing_heavy_and_names_everything() -> None:
    script = """
import sys, niblick
heavy = {"torch", "numpy", "pydantic", "rich", "typer"} & set(sys.modules)
assert not heavy, heavy
assert set(niblick.__all__) <= set(dir(niblick))
niblick.train, niblick.pack, niblick.evaluate, niblick.Run, niblick.load
assert "torch" not in sys.modules
import niblick.audit.types
assert niblick.audit("x.py", static=True).verdict
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert "no such file or folder" in done.stderr.splitlines()[-1]


def test_without_the_lab_its_functions_say_what_to_install() -> None:
    script = """
import sys
sys.modules["torch"] = None
import niblick
for call in (lambda: niblick.train("pocket"), lambda: niblick.pack("pocket")):
    try:
        call()
    except niblick.errors.NiblickError as error:
        print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 2 and all("pip install 'niblick[lab]'" in line for line in lines)


def test_settings_without_effect_are_refused(folder: Path, monkeypatch) -> None:
    monkeypatch.chdir(folder)
    whole = niblick.train("tiny.toml", data="notes", out="second")
    refused = [
        (lambda: niblick.train("tiny.toml", data="notes", out="second"), "holds a run"),
        (lambda: niblick.train("tiny.toml", tokenizer="bytes"), "goes with data"),
        (lambda: niblick.pack(whole, self_calibrate=True), "no effect with codec 'int-zlib'"),
        (lambda: niblick.pack(whole, codec="int-zlib", data="notes"), "--data has no effect"),
        (lambda: niblick.pack(whole, codec="rd", data="x", self_calibrate=True), "not both"),
        (lambda: niblick.evaluate(whole, colour="red"), "unknown option 'colour'"),
        (lambda: niblick.evaluate(whole, "notes", batch_tokens=64), "--engine torch"),
        (lambda: niblick.evaluate(whole, "notes", split="test"), "is one text"),
        (lambda: niblick.evaluate(whole, "notes", stride=8), "stride"),
        (lambda: niblick.audit("nowhere.py"), "no such file"),
        (lambda: niblick.audit("tiny.toml", trust=True, static=True), "exclude"),
    ]
    for call, said in refused:
        with pytest.raises(NiblickError, match=re.escape(said)) as found:
            call()
        assert "\n" not in str(found.value)


def test_a_model_tells_its_score_only_from_the_card_of_that_very_file(
    folder: Path, monkeypatch
) -> None:
    monkeypatch.chdir(folder)
    run = niblick.train("tiny.toml", data="notes", out="third", settings=["seed=3"])
    whole = run.load()
    assert whole.card == run.card
    assert f"{run.card['parameters']:,} parameters in {run.artifact.stat().st_size:,}" in repr(
        whole
    )
    other = niblick.pack(run, "third/other.nib", codec="int-zlib", max_bytes=150_000)
    assert niblick.load(other.path).card is None
    assert "bits per byte" not in repr(niblick.load(other.path))
