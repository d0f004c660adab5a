"""From the tensors of a file to a LanguageModel that holds them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import ArrayLike

from niblick.artifact.load import exported_recipe
from niblick.codecs.quantized import QuantizedTensor
from niblick.errors import NiblickError
from niblick.limits import quoted
from niblick.model.ensemble import new_model
from niblick.model.lm import LanguageModel
from niblick.recipe import Recipe


def build_model(
    recipe: Recipe, tensors: Mapping[str, QuantizedTensor | ArrayLike]
) -> LanguageModel:
    """A LanguageModel of the exported recipe holding `tensors`: eval mode, float32, on the CPU."""
    model = new_model(exported_recipe(recipe).model, seed=None)
    load_tensors(model, tensors)
    return model.eval()


def load_tensors(model: LanguageModel, tensors: Mapping[str, QuantizedTensor | ArrayLike]) -> None:
    """Give `model` the values of `tensors`, which must name each of its exported parameters;
    training-only heads stay as they are.
    """
    values = {
        name: t.dequantize() if isinstance(t, QuantizedTensor) else np.require(t, np.float32, "W")
        for name, t in tensors.items()
    }
    plan = model.plan
    heads = {p.name for p in plan.parameters} - {p.name for p in plan.exported}
    odd = ({name for name, _ in model.named_parameters()} - heads) ^ values.keys()
    if odd:
        raise NiblickError(f"the tensors do not fit the model: {quoted(min(odd))} has no partner")
    # Not strict: what an ensemble's members share has names in each of them, too.
    model.load_state_dict({n: torch.from_numpy(value) for n, value in values.items()}, strict=False)
