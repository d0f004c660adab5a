"""Frequencies of the rotary embedding, whose base may be rescaled for a declared context."""

from __future__ import annotations

from niblick.recipe.model import ModelRecipe


def rotary_base(model: ModelRecipe, context: int) -> float:
    """The base for a declared context: base * (T / T_train)^(R / (R - 2)) beyond the training
    length.
    """
    rope, dims = model.attention.rope, model.rope_dims
    if rope.train_length is None or context <= rope.train_length:
        return rope.base
    return float(rope.base * (context / rope.train_length) ** (dims / (dims - 2)))


def rotary_frequencies(model: ModelRecipe, context: int) -> tuple[float, ...]:
    """Radians per position of each of the R / 2 rotated pairs."""
    base = rotary_base(model, context)
    exponents = (-2.0 * i / model.rope_frequency_dims for i in range(model.rope_dims // 2))
    return tuple(base**exponent for exponent in exponents)
