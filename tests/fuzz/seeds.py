"""Sound files that the cases damage: a run, artifacts of each codec, data, and a state dict."""

from __future__ import annotations

from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import torch

from niblick.cli import main
from niblick.model import LanguageModel
from niblick.recipe import load_recipe, recipe_to_toml
from training_runs import SENTENCE, tiny_recipe

_PUBLISHED = (
    "model.dim=64", "model.vocab_size=64", "model.attention.heads=4", "model.attention.kv_heads=2",
    "model.bigram.buckets=64", "model.bigram.width=8", "model.sidecar.width=8",
)  # fmt: skip


@dataclass(frozen=True)
class Seeds:
    """Where the sound files are."""

    folder: Path

    @property
    def run(self) -> Path:
        """A finished run, stopped and resumed never."""
        return self.folder / "run"

    @property
    def artifacts(self) -> list[Path]:
        """One artifact of each codec."""
        return [self.folder / "run" / "artifact.nib", self.folder / "rd.nib"]

    @property
    def data(self) -> Path:
        """A prepared folder of shards."""
        return self.folder / "data"

    @property
    def published(self) -> Path:
        """A published state dict, as plain floats."""
        return self.folder / "published.pt"


def make_seeds(folder: Path) -> Seeds:
    """Write the sound files into `folder`, by the commands that users run."""
    for split, count in (("train", 60), ("validation", 8), ("test", 4)):
        (folder / "text" / split).mkdir(parents=True)
        for number in range(count):
            text = SENTENCE.format(f"{number} {split}") * 3
            (folder / "text" / split / f"{number}.txt").write_text(text)
    _call("data", "prepare", folder / "text", "--out", folder / "data", "--tokenizer", "bytes")
    recipe = tiny_recipe()
    data = recipe.data.model_copy(update={"corpus": str(folder / "data")})
    (folder / "tiny.toml").write_text(recipe_to_toml(recipe.model_copy(update={"data": data})))
    _call("train", folder / "tiny.toml", "--out", folder / "run", "--set", "evaluation.context=32")
    _call("pack", folder / "run", "--out", folder / "rd.nib", "--codec", "rd")
    model = LanguageModel(load_recipe("sidecar", _PUBLISHED).model, seed=0)
    torch.save(dict(model.state_dict()), folder / "published.pt")
    return Seeds(folder)


def _call(*arguments: object) -> None:
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()) as said:
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as end:
            assert not end.code, (arguments, said.getvalue())
