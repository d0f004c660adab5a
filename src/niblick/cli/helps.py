"""Help texts as people write them: `MODEL` for what must be given, `TEXT`, `N`, `X` and `PATH` for
what an option takes, whatever the version of typer calls them.
"""

from __future__ import annotations

import re
from typing import Any

from typer.core import TyperCommand

from niblick.cli.imports import importing

_NAMES = {"str": "TEXT", "int": "N", "float": "X", "path": "PATH", "file": "PATH", "Path": "PATH"}
_TYPE = re.compile(r" <(?:list\[)?(\w+)\]?(?: range)?>")


class PlainCommand(TyperCommand):
    """A command whose help names no types of Python."""

    def make_context(self, *given: Any, **settings: Any) -> Any:
        """Read the arguments: typer imports pydantic for it."""
        with importing():
            return super().make_context(*given, **settings)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Arguments without braces, and a list's dots once."""
        pieces: list[str] = super().collect_usage_pieces(ctx)
        return [_argument(piece) for piece in pieces]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """What must be given, then the options."""
        records = [(each, each.get_help_record(ctx)) for each in self.get_params(ctx)]
        for kind, title in (("argument", "Arguments"), ("option", "Options")):
            rows = [
                (_plain(row[0], kind), row[1].removesuffix("[required]").rstrip())
                for each, row in records
                if row is not None and each.param_type_name == kind
            ]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)


def _plain(name: str, kind: str) -> str:
    if kind == "argument":
        return _argument(_TYPE.sub("", name))
    return _TYPE.sub(lambda found: f" {_NAMES.get(found[1], found[1].upper())}", name)


def _argument(name: str) -> str:
    """Without braces, in capitals, a list's dots once."""
    return re.sub(r"\.\.\.(\]?)\.\.\.", r"...\1", re.sub(r"[{}]", "", name)).upper()
