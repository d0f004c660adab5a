"""Generation: engines that run a model with constant state, sampling, and streams of tokens and
text.
"""

from niblick.engine.base import Engine, ReferenceEngine
from niblick.engine.continuation import Continuation, continue_batch, continue_tokens, start_text
from niblick.engine.native import NativeEngine, open_engine
from niblick.engine.sampling import GREEDY, Sampling

__all__ = [
    "GREEDY",
    "Continuation",
    "Engine",
    "NativeEngine",
    "ReferenceEngine",
    "Sampling",
    "continue_batch",
    "continue_tokens",
    "open_engine",
    "start_text",
]
