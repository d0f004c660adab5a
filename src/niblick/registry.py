"""Named choices, one registry per kind of thing, and the user code that adds to them.

A registry refuses duplicates and lists what it holds. Plugins are modules that register their own
entries when they are imported: named on the command line (`--plugin MODULE`), or installed under
the entry-point group `niblick.plugins`. Nothing is imported because a file names it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from typing import Generic, TypeVar

from niblick.errors import NiblickError
from niblick.limits import cut, did_you_mean, quoted

T = TypeVar("T")
ENTRY_POINTS = "niblick.plugins"
_loaded: list[str] = []


class Registry(Generic[T]):
    """A mapping from a name to one implementation of `kind`.

    Raises `NiblickError` for an unknown name (listing the known ones) and `ValueError` for a name
    taken twice.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that files its argument under `name` and returns it unchanged."""

        def add(entry: T) -> T:
            if name in self._entries:
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            self._entries[name] = entry
            return entry

        return add

    def __getitem__(self, name: str) -> T:
        if name not in self:
            known = did_you_mean(name, self) or f"; known: {', '.join(self)}"
            raise NiblickError(f"unknown {self.kind} {quoted(name)}{known}")
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        if name not in self._entries:
            load_installed_plugins()
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))


def look_here() -> None:
    """Let modules that the user names be found in the folder where the user stands."""
    if "" not in sys.path:
        sys.path.insert(0, "")


def load_plugin(module: str) -> None:
    """Import a module of the user's, which registers what it brings; twice is as good as once.

    Raises `NiblickError` where it cannot be imported, fails, or takes a name that is taken.
    """
    if module in _loaded:
        return
    try:
        import_module(module)
    except Exception as error:  # noqa: BLE001  # whatever a module of the user's does
        raise NiblickError(f"plugin {quoted(module)} cannot be loaded: {cut(error)}") from None
    _loaded.append(module)


def loaded_plugins() -> tuple[str, ...]:
    """Modules loaded so far, in order: what another process needs to know the same names."""
    return tuple(_loaded)


@cache
def load_installed_plugins() -> None:
    """Load what installed distributions offer, once, when a name is not known without them."""
    from importlib import metadata  # a twentieth of the time to the first token

    for entry in metadata.entry_points(group=ENTRY_POINTS):
        load_plugin(entry.value.partition(":")[0])
