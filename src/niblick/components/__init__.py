"""The parts of a model, each one object in one file; importing them imports no torch.

A component declares its parameters, matrix products and decode state (`spec`), computes itself in
plain torch (`forward`, which imports torch when it is called), says how far back it looks
(`reach`) and by which names cards and ablations know it (`techniques`).
"""

from collections.abc import Iterator
from typing import Any

from niblick.components import attention as attention
from niblick.components import token_shift as token_shift
from niblick.components.base import (
    MIXERS,
    Call,
    Component,
    ComponentSpec,
    Init,
    Matmul,
    Mixer,
    Parameter,
    Role,
    StateEntry,
    Technique,
    VirtualLayer,
)
from niblick.components.bigram import BIGRAM
from niblick.components.choices import CHOICES
from niblick.components.documents import DOCUMENTS
from niblick.components.embedding import EMBEDDING
from niblick.components.mlp import MLP
from niblick.components.mtp import MTP
from niblick.components.residual import RESIDUAL_MIX, SCALES
from niblick.components.sidecar import SIDECAR
from niblick.components.skips import SKIPS
from niblick.components.smear import SMEAR
from niblick.components.value_embedding import VALUE_EMBEDDING

# In the order of their parameters: what a token meets before the layers, and what comes after.
BEFORE: tuple[Component, ...] = (EMBEDDING, BIGRAM, SMEAR, VALUE_EMBEDDING, SKIPS, DOCUMENTS)
AFTER: tuple[Component, ...] = (SIDECAR, MTP)


def techniques() -> Iterator[Technique]:
    """Those of the registered mixers and of all other parts of a model, each once."""
    seen: set[str] = set()
    parts: tuple[Any, ...] = (
        *(MIXERS[name] for name in MIXERS),
        MLP,
        *BEFORE,
        *AFTER,
        RESIDUAL_MIX,
    )
    for technique in (*(t for part in parts for t in part.techniques), *CHOICES):
        if technique.name not in seen:
            seen.add(technique.name)
            yield technique


__all__ = [
    "AFTER",
    "BEFORE",
    "BIGRAM",
    "DOCUMENTS",
    "EMBEDDING",
    "MIXERS",
    "MLP",
    "MTP",
    "RESIDUAL_MIX",
    "SCALES",
    "SIDECAR",
    "SKIPS",
    "SMEAR",
    "VALUE_EMBEDDING",
    "Call",
    "Component",
    "ComponentSpec",
    "Init",
    "Matmul",
    "Mixer",
    "Parameter",
    "Role",
    "StateEntry",
    "Technique",
    "VirtualLayer",
    "techniques",
]
