"""Names that a package offers and that are imported when they are used."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module


def lazily(package: str, places: Mapping[str, Sequence[str]]) -> Callable[[str], object]:
    """The `__getattr__` of `package`, whose names come from the modules in `places`."""

    def find(name: str) -> object:
        for place, names in places.items():
            if name in names:
                return getattr(import_module(place), name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return find
