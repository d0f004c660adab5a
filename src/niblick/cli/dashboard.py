"""`niblick dashboard`: live curves of all runs in a browser."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


def dashboard_command(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(metavar="FOLDER...", help="Folders that hold runs; runs/ if not given."),
    ] = None,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port on this machine; 0 takes any.")
    ] = 8421,
) -> None:
    """Show the runs below FOLDERs, and what they measure while they train, in a browser.

    It answers on this machine only. From another one: ssh -L 8421:127.0.0.1:8421 HOST.
    """
    from niblick.dashboard import Dashboard

    dashboard = Dashboard(folders or [Path("runs")], port)
    print(f"dashboard at {dashboard.url} (Ctrl-C ends it)", file=sys.stderr, flush=True)
    try:
        dashboard.serve()
    finally:
        dashboard.release()
