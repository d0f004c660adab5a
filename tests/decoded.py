"""Model files as torch sees them, and the paths of a trellis, for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from niblick.artifact import open_file
from niblick.codecs import Tensors, dequantized
from niblick.codecs.trellis import TrellisCode
from niblick.model import LanguageModel, build_model


def opened_model(path: Path) -> LanguageModel:
    """The LanguageModel in a file or run folder."""
    opened = open_file(path)
    return build_model(opened.recipe, opened.tensors)


def floats(tensors: Tensors) -> dict[str, torch.Tensor]:
    """The float32 values of tensors, quantized or not."""
    return {name: torch.tensor(dequantized(tensor)) for name, tensor in tensors.items()}


def quantizers(code: TrellisCode, symbols: NDArray[np.int64]) -> NDArray[np.int64]:
    """The quantizer of every symbol (L, N): each of the N paths starts in state 0."""
    found, state = np.zeros_like(symbols), np.zeros(symbols.shape[1], dtype=np.int64)
    for i in range(len(symbols)):
        found[i] = code.quantizer[state]
        state = code.following[state, symbols[i] & 1]
    return found
