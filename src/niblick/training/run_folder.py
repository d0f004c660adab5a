"""The run directory: recipe.toml, environment.json, metrics.jsonl and checkpoints/ (design.md,
"Interfaces").

Guarantees: files appear whole; on resuming, metrics hold no line from beyond the checkpoint; an
error in writing names the file and leaves earlier checkpoints alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from niblick.errors import TrainingError
from niblick.files import write_atomically
from niblick.recipe import Recipe, recipe_to_toml


class RunFolder:
    """Paths and small files of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self._metrics: IO[str] | None = None

    def begin(self, recipe: Recipe, environment: dict[str, Any]) -> None:
        """Create the folder for a new run; `TrainingError` where one was already trained in it."""
        if self.checkpoints.is_dir() and any(self.checkpoints.glob("step-*")):
            raise TrainingError(
                f"{str(self.path)!r} holds a run; continue it with --resume or choose another --out"
            )
        with explained(self.path):
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            write_atomically(
                self.path / "environment.json",
                (json.dumps(environment, indent=1).encode() + b"\n",),
            )
            (self.path / "metrics.jsonl").unlink(missing_ok=True)
            write_atomically(self.path / "recipe.toml", (recipe_to_toml(recipe).encode(),))

    def check_resumable(self) -> None:
        """`TrainingError` where no run was ever begun."""
        if not (self.path / "recipe.toml").is_file():
            raise TrainingError(f"nothing to resume in {str(self.path)!r}: it holds no recipe.toml")
        with explained(self.path):
            self.checkpoints.mkdir(exist_ok=True)

    def log(self, row: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl."""
        with explained(self.path / "metrics.jsonl"):
            if self._metrics is None:
                self._metrics = (self.path / "metrics.jsonl").open(
                    "a", buffering=1, encoding="utf-8"
                )
            self._metrics.write(json.dumps(row) + "\n")

    def rewind(self, step: int) -> None:
        """Drop metrics of later steps, and a last line that was cut off."""
        path = self.path / "metrics.jsonl"
        if not path.is_file():
            return
        with explained(path):
            lines = path.read_text("utf-8", errors="replace").splitlines()
            write_atomically(
                path, (f"{line}\n".encode() for line in lines if _step_of(line) <= step)
            )

    def close(self) -> None:
        """Close the metrics file."""
        if self._metrics is not None:
            self._metrics.close()
            self._metrics = None


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn an operating-system error inside the block into one clear `TrainingError` about
    `path`.
    """
    try:
        yield
    except OSError as error:
        raise TrainingError(f"cannot write {str(path)!r}: {error.strerror or error}") from None


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
