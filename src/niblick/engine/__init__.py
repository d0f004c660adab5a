"""Running a model without torch: engines with constant state, sampling, streams of text."""

from typing import TYPE_CHECKING

from niblick.engine.base import Engine
from niblick.engine.batch import Likelihoods, likelihoods, sequence
from niblick.engine.choice import open_engine
from niblick.engine.continuation import (
    Continuation,
    TextStream,
    continue_batch,
    continue_tokens,
    start_text,
    write_texts,
)
from niblick.engine.native import NativeEngine
from niblick.engine.sampling import GREEDY, Sampling
from niblick.lazy import lazily

if TYPE_CHECKING:
    from niblick.engine.plain import NumpyEngine

__all__ = [
    "GREEDY",
    "Continuation",
    "Engine",
    "Likelihoods",
    "NativeEngine",
    "NumpyEngine",
    "Sampling",
    "TextStream",
    "continue_batch",
    "continue_tokens",
    "likelihoods",
    "open_engine",
    "sequence",
    "start_text",
    "write_texts",
]
__getattr__ = lazily(__name__, {"niblick.engine.plain": ("NumpyEngine",)})
