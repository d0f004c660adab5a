"""What both engines of the runtime compute alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from niblick.codecs.quantized import Floats
from niblick.components.attention import rotary_base

if TYPE_CHECKING:
    from niblick.recipe.model import ModelRecipe

_EPSILON = np.float32(1.1920929e-7)


def rotary_frequencies(model: ModelRecipe, context: int) -> NDArray[np.float64]:
    """Radians per position (R / 2,) of each rotated pair, at a declared context."""
    exponents = np.arange(model.rope_dims // 2) * (-2.0 / model.rope_frequency_dims)
    frequencies: NDArray[np.float64] = np.power(np.float64(rotary_base(model, context)), exponents)
    return frequencies


def rms(x: Floats) -> Floats:
    """x / sqrt(mean(x^2) + eps) over the last axis."""
    found: Floats = x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + _EPSILON)
    return found


def sigmoid(x: Floats) -> Floats:
    """1 / (1 + e^-x)."""
    with np.errstate(over="ignore"):
        found: Floats = (1 / (1 + np.exp(-x))).astype(np.float32)
    return found
