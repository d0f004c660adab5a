"""The native engine's shared library, compiled on demand or beside other work."""

from __future__ import annotations

import threading

from niblick.toolchain import ENGINE

_BUILDER = "niblick-engine-build"


def build_in_background() -> threading.Thread:
    """Compile beside other work; the process waits for it before it ends."""
    thread = threading.Thread(target=ENGINE.build, name=_BUILDER)
    thread.start()
    return thread


def is_building() -> bool:
    """Whether a build in the background has not ended yet."""
    return any(thread.name == _BUILDER for thread in threading.enumerate())
