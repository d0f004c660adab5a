"""niblick: train, pack, score, audit and run the best language model that fits a byte budget.

`niblick.load(X)` gives a `niblick.Model` from an artifact, a checkpoint or a run directory; it
needs no torch, nor do `evaluate` and `audit`. `train` and `pack` need the lab. docs/python.md shows
them all.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from niblick.lazy import lazily
from niblick.runtime import prepare_threads

if TYPE_CHECKING:
    from niblick.audit import audit
    from niblick.facade import Model, load
    from niblick.functions import Run, evaluate, pack, train

prepare_threads()  # torch reads the environment when it is loaded

__version__ = "0.1.0"
__all__ = ["Model", "Run", "__version__", "audit", "evaluate", "load", "pack", "train"]
_find = lazily(
    __name__,
    {
        "niblick.facade": ("Model", "load"),
        "niblick.functions": ("Run", "evaluate", "pack", "train"),
    },
)


def __getattr__(name: str) -> object:
    """The public names, imported when they are used."""
    if name == "audit":
        return import_module("niblick.audit")  # a package that can be called
    return _find(name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
