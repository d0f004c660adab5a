"""Dresses torch up at the moment a script first imports it, and keeps the time that import takes
apart.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import sys
import time
from types import ModuleType
from typing import Any

from niblick.audit.stand_ins import gpu


class TorchHook(importlib.abc.MetaPathFinder):
    """First on the import path until torch is asked for; `seconds` is what loading torch took."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        """Torch's own spec with a loader around its loader; None for anything else."""
        if fullname != "torch":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec("torch")
        if spec is not None and spec.loader is not None:
            plain = spec.loader.exec_module

            def load(module: ModuleType) -> None:
                started = time.perf_counter()
                plain(module)
                gpu.install(module)
                self.seconds += time.perf_counter() - started

            spec.loader.exec_module = load  # type: ignore[method-assign]
        return spec
