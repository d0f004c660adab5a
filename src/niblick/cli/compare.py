"""`niblick compare`: statistics of runs against the first of them, as text, JSON and one HTML
page.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


def compare_command(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Run directories, folders of seeds, or score files."),
    ],
    split: Annotated[str, typer.Option(help="validation or test.")] = "validation",
    mode: Annotated[
        str | None, typer.Option(help="Mode of the scores; else one that all have.")
    ] = None,
    across_settings: Annotated[
        bool,
        typer.Option("--across-settings", help="Test scores of different settings all the same."),
    ] = False,
    resamples: Annotated[
        int, typer.Option(help="Bootstrap resamples.", min=100, max=1_000_000)
    ] = 10_000,
    html: Annotated[
        Path | None, typer.Option(help="Write one self-contained HTML page with plots.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the statistics as one JSON document.")
    ] = False,
) -> None:
    """Compare RUNs: the first is what the others are held against."""
    import json

    from niblick.cli.tables import columns
    from niblick.errors import NiblickError, ScoreError
    from niblick.files import write_atomically
    from niblick.scoring.compare import compare, comparison_text
    from niblick.scoring.differences import recipe_rows
    from niblick.scoring.entries import read_entries

    if across_settings and len(runs) == 1:
        raise NiblickError("--across-settings does nothing with one RUN")
    entries = read_entries(runs, split=split, mode=mode)
    found = compare(entries, resamples=resamples, across_settings=across_settings)
    if html is not None:
        from niblick.report.page import comparison_page

        try:
            write_atomically(html, (comparison_page(found, entries).encode(),))
        except OSError as error:
            raise ScoreError(f"cannot write {str(html)!r}: {error.strerror}") from None
        print(f"page written to {html}", file=sys.stderr)
    text = comparison_text(found, recipe_rows(entries), width=columns())
    print(json.dumps(found, allow_nan=False) if as_json else text)
