"""A model's tensors as the engines take them, for tests."""

from __future__ import annotations

import numpy as np

from niblick.codecs.quantized import QuantizedTensor
from niblick.engine import NativeEngine, NumpyEngine
from niblick.model import LanguageModel


def quantized(weight: np.ndarray, levels: int, factors: np.ndarray | None = None):
    """A float matrix rounded to `levels` steps either way, per row and times column factors."""
    wide = np.ones(weight.shape[1]) if factors is None else factors
    steps = np.abs(weight / wide).max(axis=1) / levels
    codes = np.rint(weight / wide / steps[:, None]).astype(np.int32)
    return QuantizedTensor(shape=weight.shape, codes=codes, row_steps=steps, column_factors=factors)


def tensors_of(model: LanguageModel) -> dict[str, np.ndarray]:
    """The exported float tensors."""
    found = {p.name: model.state_dict()[p.name] for p in model.plan.exported}
    return {name: tensor.detach().float().numpy() for name, tensor in found.items()}


def native(model, library, **options) -> NativeEngine:
    """The native engine of a model whose matrices may be given quantized as `model.quantized`."""
    return NativeEngine(model.plan, engine_tensors(model), library, **options)


def plain(model, **options) -> NumpyEngine:
    """The numpy engine of the same."""
    return NumpyEngine(model.plan, engine_tensors(model), **options)


def engine_tensors(model: LanguageModel) -> dict:
    """Float tensors with the quantized ones, where a test has made some, in their places."""
    return {**tensors_of(model), **getattr(model, "quantized", {})}
