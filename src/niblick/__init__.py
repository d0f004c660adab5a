"""niblick: train, pack, score, audit and run the best language model that fits a byte budget.

`niblick.load(path)` gives a LanguageModel from an artifact, a checkpoint or a run directory.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from niblick.model import LanguageModel

__version__ = "0.1.0"


def load(path: str | Path) -> LanguageModel:
    """The model in an artifact, a checkpoint or a run directory, in float32 on the CPU, ready to
    call.

    `logits, state = model(tokens, state=None)`: tokens (B, T) int64, logits (B, T, V) float32.
    Raises `niblick.errors.ArtifactError` for a file that is missing, damaged or foreign.
    """
    from niblick.artifact import open_file
    from niblick.model import build_model

    opened = open_file(path)
    return build_model(opened.recipe, opened.tensors)


__all__ = ["__version__", "load"]
