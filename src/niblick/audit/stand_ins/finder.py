"""The import hook that offers stand-ins: last on the path, so that whatever is really there wins.

Only imports made outside installed packages are served: torch must keep finding that triton is
absent.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from niblick.audit.stand_ins.catalog import installs
from niblick.audit.stand_ins.generic import StandInModule

_INSTALLED = ("site-packages", "dist-packages")


class StandInFinder(importlib.abc.MetaPathFinder):
    """Serves known or declared packages that nothing else finds; `used` lists them in order, top
    names only.
    """

    def __init__(self, declared: Sequence[str]) -> None:
        self.used: list[str] = []
        self._declared = {name.replace("-", "_").lower() for name in declared}

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        """A spec for a stand-in, or None."""
        top = fullname.partition(".")[0]
        known = installs(top) is not None or top.lower() in self._declared
        served_before = isinstance(sys.modules.get(top), StandInModule)
        if (
            not (known or served_before)
            or ("." in fullname and not served_before)
            or not _asked_by_script()
        ):
            return None
        if top not in self.used:
            self.used.append(top)
        return importlib.util.spec_from_loader(fullname, _Loader(), is_package=True)


class _Loader(importlib.abc.Loader):
    def create_module(self, spec: Any) -> ModuleType:
        return StandInModule(spec.name)

    def exec_module(self, module: ModuleType) -> None: ...


def _asked_by_script() -> bool:
    frame: Any = sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_filename
        if not name.startswith("<frozen") and not name.endswith("importlib/__init__.py"):
            return not any(part in name for part in _INSTALLED)
        frame = frame.f_back
    return False
