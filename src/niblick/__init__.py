"""niblick: train, pack, score, audit and run the best language model that fits a byte budget.

`niblick.load(X)` gives a `niblick.Model` from an artifact, a checkpoint or a run directory; it
needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from niblick.runtime import prepare_threads

if TYPE_CHECKING:
    from niblick.facade import Model, load

prepare_threads()  # torch reads the environment when it is loaded

__version__ = "0.1.0"
__all__ = ["Model", "__version__", "load"]


def __getattr__(name: str) -> object:
    """`Model` and `load`, imported when they are used."""
    if name in ("Model", "load"):
        return getattr(import_module("niblick.facade"), name)
    raise AttributeError(f"module 'niblick' has no attribute {name!r}")
