"""Tables of plain text, as wide as what they hold. No rich: half of a command's start-up."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Collection, Sequence

_NARROW = 12  # a column is not wrapped to less


def table_lines(
    rows: Sequence[Sequence[str]], *, right: Collection[int] = (), wrap: int | None = None
) -> list[str]:
    """Columns as wide as their longest cell, those of `right` aligned to the right.

    The column `wrap` is broken between words where a terminal is too narrow for the table.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    if wrap is not None:
        others = sum(widths) - widths[wrap] + 2 * (len(widths) - 1)
        widths[wrap] = min(widths[wrap], max(columns() - others, _NARROW))
    lines = []
    for row in rows:
        for cells in _broken(row, wrap, widths):
            shown = (
                cell.rjust(width) if at in right else cell.ljust(width)
                for at, (cell, width) in enumerate(zip(cells, widths, strict=True))
            )
            lines.append("  ".join(shown).rstrip())
    return lines


def _broken(row: Sequence[str], wrap: int | None, widths: Sequence[int]) -> list[list[str]]:
    """One row as the lines it takes."""
    if wrap is None:
        return [list(row)]
    first, *rest = textwrap.wrap(row[wrap], widths[wrap], break_long_words=False) or [""]
    empty = [""] * len(row)
    more = ([*empty[:wrap], part, *empty[wrap + 1 :]] for part in rest)
    return [[*row[:wrap], first, *row[wrap + 1 :]], *more]


def headline(text: str, room: int) -> str:
    """As much of a description as `room` characters hold, to the end of a sentence or clause, else
    of a word.
    """
    if len(text) <= room:
        return text
    ends = [at for at, letter in enumerate(text[: room + 1]) if letter in ".:;,"]
    if ends:
        return text[: ends[-1]]
    return text[: room - 3].rpartition(" ")[0] + " ..."


def columns() -> int:
    """Of the terminal; of a pipe or a file there is no end."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 1 << 20
