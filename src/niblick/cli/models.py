"""Which model a command has opened, where that is not what was typed."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from niblick.facade import Model


def say_shipped(model: Model) -> None:
    """One line on standard error where a name stood for a model that ships with niblick."""
    if model.is_shipped:
        size = model.path.stat().st_size
        print(f"niblick: the shipped model {model.path.stem!r}, {size:,} bytes", file=sys.stderr)
