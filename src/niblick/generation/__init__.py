"""Generation: engines that run a model with constant state, sampling, and streams of tokens and
text.
"""

from niblick.generation.engine import Engine, ReferenceEngine
from niblick.generation.native import NativeEngine, open_engine
from niblick.generation.sampling import GREEDY, Sampling
from niblick.generation.stream import Continuation, continue_batch, continue_tokens, start_text

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
