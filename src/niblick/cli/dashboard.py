"""`niblick runs` and `niblick dashboard`: all runs in a list, or live in a browser."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from niblick.cli.completion import words
from niblick.cli.options import JsonOption
from niblick.cli.tables import table_lines
from niblick.errors import DataError, NiblickError

FoldersArgument = Annotated[
    list[Path] | None,
    typer.Argument(metavar="FOLDER...", help="Folders that hold runs; runs/ if not given."),
]
_RUNS = Path("runs")
_AGES = ((86400, "d"), (3600, "h"), (60, "min"))


def runs_command(
    folders: FoldersArgument = None,
    sort: Annotated[
        str,
        typer.Option(
            help="newest (first), or bpb (best first).", autocompletion=words("newest", "bpb")
        ),
    ] = "newest",
    as_json: JsonOption = False,
) -> None:
    """List the runs below FOLDERs: how far they are, what they score, how large they are."""
    from niblick.dashboard.runs import MAX_RUNS, Watch

    if sort not in {"newest", "bpb"}:
        raise NiblickError(f"--sort takes newest or bpb, not {sort!r}")
    roots = folders or [_RUNS]
    for root in roots:
        if not root.is_dir():
            cure = "; `niblick train RECIPE` makes the first" if root == _RUNS else ""
            raise DataError(f"no folder {str(root)!r}{cure}")
    watch = Watch(roots)
    watch.refresh()
    rows = [run.summary() for run in watch.runs.values()]
    if sort == "bpb":
        rows.sort(key=_rank)
    if as_json:
        print(json.dumps(rows, allow_nan=False))
        return
    if not rows:
        print(f"no runs in {', '.join(map(str, roots))}", file=sys.stderr)
        return
    cells = [["run", "recipe", "seed", "state", "bpb", "bytes", "changed"], *map(_row, rows)]
    print(*table_lines(cells, right={2, 4, 5, 6}), sep="\n")
    if watch.left_out:
        print(f"the newest {MAX_RUNS}; {watch.left_out} older ones are left out", file=sys.stderr)


def _rank(run: dict[str, Any]) -> tuple[int, float]:
    """Valid scores first, the best of them first of all; then others, then none."""
    bpb = run["packed_bpb"]
    return (2, 0.0) if bpb is None else (int(not run["valid"]), bpb)


def _row(run: dict[str, Any]) -> list[str]:
    """One run; a bpb that is of unpacked weights, or not valid, says so."""
    state, bpb, size = run["state"], run["packed_bpb"], run["artifact_bytes"]
    if state == "stopped" and run["fraction"] == 1:
        state = "trained"
    elif state != "scored" and run["fraction"] is not None:
        state += f" {100 * run['fraction']:.0f} %"
    shown = "" if bpb is None else f"{bpb:.4f}" if run["valid"] else f"({bpb:.4f} not valid)"
    if bpb is None and run["validation_bpb"] is not None:
        shown = f"~{run['validation_bpb']:.4f}"
    return [
        run["id"],
        run["recipe"],
        f"{run['seed'] or 0:.0f}",
        state,
        shown,
        "" if size is None else f"{size:,.0f}",
        _age(run["age"]),
    ]


def _age(seconds: float) -> str:
    for unit, name in _AGES:
        if seconds >= unit:
            return f"{seconds / unit:.0f} {name} ago"
    return "now"


def dashboard_command(
    folders: FoldersArgument = None,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port on this machine; 0 takes any.")
    ] = 8421,
) -> None:
    """Show the runs below FOLDERs, and what they measure while they train, in a browser.

    It answers on this machine only. From another one: ssh -L 8421:127.0.0.1:8421 HOST.
    """
    from niblick.dashboard import Dashboard

    dashboard = Dashboard(folders or [_RUNS], port)
    print(f"dashboard at {dashboard.url} (Ctrl-C ends it)", file=sys.stderr, flush=True)
    try:
        dashboard.serve()
    finally:
        dashboard.release()
