"""Imports: modules that ship with the program are run once, everything else is a name."""

from __future__ import annotations

import ast
import sys
from typing import Any

from niblick.audit.flow.calls import Calls
from niblick.audit.flow.objects import Dotted, Namespace
from niblick.audit.flow.signals import AbortSignal
from niblick.audit.stand_ins.catalog import installs
from niblick.audit.words import words

_MOST_MODULES = 300
_OUTSIDE = sys.stdlib_module_names | words(
    "torch numpy scipy sentencepiece tiktoken triton flash_attn transformers"
)


class Imports(Calls):
    """Import statements."""

    def do_import(self, node: ast.Import) -> None:
        for alias in node.names:
            found = self.import_program(alias.name)
            self.absent(alias.name, found)
            name = alias.asname or alias.name.split(".")[0]
            if found is not None and not alias.asname:
                found = self.loaded.get(name, found)
            self.store(name, found or Dotted(alias.name if alias.asname else name))

    def do_importfrom(self, node: ast.ImportFrom) -> None:
        base = self.absolute(node)
        module = self.import_program(base) if base else None
        if not node.level:
            self.absent(base, module)
        for alias in node.names:
            if module is not None and alias.name == "*":
                self.scopes[-1][0].update(
                    {k: v for k, v in module.attrs.items() if not k.startswith("__")}
                )
                continue
            found: Any = None
            if module is not None and alias.name in module.attrs:
                found = module.attrs[alias.name]
            name = f"{base}.{alias.name}".lstrip(".")
            if found is None and base != alias.name and name in self.modules:
                found = self.import_program(name)
            self.store(alias.asname or alias.name, found if found is not None else Dotted(name))

    def absent(self, name: str, found: Namespace | None) -> None:
        """A guarded import of what is neither shipped nor known fails, and its handler runs."""
        top = name.partition(".")[0]
        known = top in _OUTSIDE or installs(top) or top in self.modules
        if self.tries and found is None and not known:
            raise AbortSignal

    def absolute(self, node: ast.ImportFrom) -> str:
        """The module an import names, its leading dots resolved against the module that holds
        it.
        """
        if not node.level:
            return node.module or ""
        scope = self.scopes[-1][-1]
        parts = str(scope.get("__name__", "")).split(".")
        package = str(scope.get("__file__", "")).endswith("__init__.py")
        kept = parts[: len(parts) - node.level + package]
        return ".".join([*kept, *([node.module] if node.module else [])])

    def import_program(self, name: str) -> Namespace | None:
        """A module that ships with the submission, run once."""
        if name in self.loaded:
            return self.loaded[name]
        top, _, last = name.rpartition(".")
        outside = name.partition(".")[0] in _OUTSIDE
        file, tree = (
            self.modules.get(name) or (None if outside else self.modules.get(last)) or ("", None)
        )
        if tree is None or len(self.loaded) > _MOST_MODULES:
            return None
        parent = self.import_program(top) if top in self.modules else None
        if name in self.loaded:
            return self.loaded[name]
        space = Namespace({})
        self.loaded[name] = space
        self.run_module(tree, name, file, space.attrs)
        if parent is not None:
            parent.attrs.setdefault(last, space)
        return space
