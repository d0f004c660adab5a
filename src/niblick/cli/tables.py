"""Tables of plain text, as wide as what they hold. No rich: half of a command's start-up."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Collection, Sequence


def table_lines(
    rows: Sequence[Sequence[str]], *, right: Collection[int] = (), wrap: bool = False
) -> list[str]:
    """Columns as wide as their longest cell, those of `right` aligned to the right.

    With `wrap` the last column is broken between words where a terminal is too narrow for it.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    before = sum(widths[:-1]) + 2 * (len(widths) - 1)
    room = _columns() - before if wrap else 0
    lines = []
    for row in rows:
        parts = textwrap.wrap(row[-1], room) if room >= _NARROW else [row[-1]]
        for number, part in enumerate(parts or [""]):
            cells = [*(row[:-1] if number == 0 else [""] * (len(row) - 1)), part]
            shown = (
                cell.rjust(width) if at in right else cell.ljust(width)
                for at, (cell, width) in enumerate(zip(cells, widths, strict=True))
            )
            lines.append("  ".join(shown).rstrip())
    return lines


_NARROW = 20  # a column narrower than this is not wrapped


def _columns() -> int:
    """Of the terminal; of a pipe or a file there is no end."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 1 << 20
