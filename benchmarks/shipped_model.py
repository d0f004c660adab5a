"""Makes a model that ships with niblick from a run; `python benchmarks/shipped_model.py RUN`.

Copies the run's artifact, card, score and resolved recipe into `src/niblick/models`, measures what
else is said of `pocket` (a quarter of an hour on two idle cores), enters all figures in
docs/results.json and writes README, docs and plots from that (tools/figures.py). `make
shipped-model` trains the run of `pocket` first; the other is `niblick train pocket-ensemble`.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from niblick.scoring.score import read_score

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tools"))
import figures

MODELS = ROOT / "src" / "niblick" / "models"
ROWS = {"pocket": "shipped", "pocket-ensemble": "shipped-ensemble"}  # by the recipe's name
OF_POCKET = ("frontier", "evaluation", "proof")  # what else is measured of it


def ship(run: Path) -> None:
    """Put the run's model in place, with what was measured of it."""
    card = json.loads((run / "card.json").read_text("utf-8"))
    name = load_name(run)
    if name not in ROWS:
        sys.exit(f"{run} is of the recipe {name!r}; what ships: {', '.join(ROWS)}")
    scores = [path for path in (run / "scores").glob("*.json") if is_headline(path, card)]
    if len(scores) != 1:
        sys.exit(f"{run} has {len(scores)} scores that could be its headline")
    shutil.copy(run / "artifact.nib", MODELS / f"{name}.nib")
    shutil.copy(run / "card.json", MODELS / f"{name}.card.json")
    shutil.copy(run / "card.md", MODELS / f"{name}.card.md")
    shutil.copy(run / "recipe.toml", MODELS / f"{name}.toml")
    shutil.copy(scores[0], MODELS / f"{name}.score.json")
    rows = figures.read_rows()
    figures.take(rows, ROWS[name], figures.card_values(card), note="")
    for row in OF_POCKET if name == "pocket" else ():
        print(f"measuring: {rows[row]['what']}", file=sys.stderr)
        document = figures.renew(rows[row], {"RUN": str(run)})
        figures.take(rows, row, figures.read(row, document))
    for path in figures.make(rows):
        print(path.relative_to(ROOT))


def load_name(run: Path) -> str:
    """The name of the run's recipe, under which the model ships."""
    from niblick.recipe import load_recipe

    return load_recipe(run / "recipe.toml").name


def is_headline(path: Path, card: dict[str, Any]) -> bool:
    """Whether a score file is the one that the card opens with."""
    score = read_score(path)
    return (score.artifact_sha256, score.bpb) == (card["artifact_sha256"], card["packed_bpb"])


if __name__ == "__main__":
    ship(Path(sys.argv[1]))
