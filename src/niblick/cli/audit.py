"""`niblick audit PATH...`: reviews submissions and says, with evidence, whether their scores are
valid.

Exit codes: 0 all clean; 1 one is flagged or does not import; 2 usage; 3 one is undecided and none
is flagged.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from niblick.audit.types import Report
from niblick.cli.progress import working
from niblick.errors import AuditError, NiblickError
from niblick.limits import quoted

_FLAGGED, _UNDECIDED = 1, 3
_MOST_AT_ONCE = 4
_EACH = 4_000_000_000  # bytes of memory to have for each path under review


def audit_command(
    paths: Annotated[list[Path], typer.Argument(help="Training scripts or record folders.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON list.")] = False,
    sarif: Annotated[
        Path | None, typer.Option(help="Write a SARIF 2.1.0 file for code-scanning tools.")
    ] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the reports as Markdown.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write the reports as one HTML page.")] = None,
    script: Annotated[
        str | None, typer.Option(help="The script to review, where a folder holds several.")
    ] = None,
    trust: Annotated[
        bool,
        typer.Option("--trust", help="Run the code even where this machine cannot isolate it."),
    ] = False,
    static: Annotated[bool, typer.Option("--static", help="Only read; run nothing.")] = False,
    data: Annotated[
        Path | None,
        typer.Option(help="A text or shards to score a folder's own artifact (*.nib) on."),
    ] = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show remarks without weight too.")
    ] = False,
) -> None:
    """Review submissions: unpack, read, smoke-test in a sandbox, check the record, give a
    verdict.
    """
    if trust and static:
        raise AuditError("--trust and --static exclude each other: --static runs nothing")
    if verbose and as_json:
        raise AuditError("--verbose does nothing with --json, which holds every remark")
    for path in paths:
        if not path.exists():
            raise AuditError(
                f"{path}: no such file or folder; expected a training script or a record folder"
            )
    if data is not None and not data.exists():
        raise AuditError(f"{data}: no such file or folder; expected a text or a folder of shards")
    for target in (sarif, markdown, html):
        if target is not None and target.is_dir():
            raise AuditError(f"{target} is a folder; name a file")
        if target is not None and not target.resolve().parent.is_dir():
            raise AuditError(f"{target}: its folder does not exist")
    barred = len(paths) > 1 and sys.stderr.isatty()
    what = quoted(str(paths[0])) if len(paths) == 1 else f"{len(paths)} submissions"
    with working(f"auditing {what}", enabled=not (as_json or barred)):
        reports = audit_all(paths, run_code=not static, trust=trust, script=script)
        if data is not None:
            from niblick.audit.recompute import recomputed

            reports = [recomputed(r, path, data) for r, path in zip(reports, paths, strict=True)]
    _print(reports, as_json=as_json, verbose=verbose)
    sys.stdout.flush()
    _write_files(reports, sarif, markdown, html)
    raise typer.Exit(exit_code(reports))


def exit_code(reports: list[Report]) -> int:
    """0 all clean; 1 any flagged or failing to import; 3 undecided and none flagged."""
    verdicts = {report.verdict for report in reports}
    if any(verdict.startswith("flag_") or verdict == "import_fail" for verdict in verdicts):
        return _FLAGGED
    return 0 if all(verdict.startswith("clean_") for verdict in verdicts) else _UNDECIDED


def audit_all(
    paths: list[Path], *, run_code: bool, trust: bool, script: str | None
) -> list[Report]:
    """Reports in the order of `paths`, a few at a time: each path is read and run in processes of
    its own, so that neither the others nor their number has a part in its verdict. An interruption
    ends whatever runs.
    """
    from niblick.audit.conduct import audit
    from niblick.audit.sandbox import detect, stop_all

    def one(path: Path) -> Report:
        try:
            return audit(path, run_code=run_code, trust=trust, script=script)
        except NiblickError:
            raise
        except Exception as error:  # noqa: BLE001 - one path must not take the others along
            return _failed(path, error)

    detect()
    workers = max(1, min(len(paths), os.cpu_count() or 1, _MOST_AT_ONCE, _memory() // _EACH))
    with _progress(len(paths)) as advance, ThreadPoolExecutor(workers) as pool:
        waiting = [pool.submit(one, path) for path in paths]
        try:
            for each in as_completed(waiting):
                each.result()
                advance()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            stop_all()
            raise
    return [each.result() for each in waiting]


def _memory() -> int:
    """Bytes of memory that this machine has; few where the system does not say."""
    if not hasattr(os, "sysconf"):
        return 4 << 30
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _failed(path: Path, error: Exception) -> Report:
    """The report on a path that the audit itself broke down on: undecided, and says so."""
    from niblick.audit.review import broken

    said = f"the audit broke down on this path ({type(error).__name__}: {str(error)[:200]})"
    return Report(
        path=str(path),
        verdict="hold_unclear",
        recommendation="HOLD: the audit failed here, a person should read the script",
        findings=(broken(said),),
        smoke=None,
        record={},
    )


@contextmanager
def _progress(total: int) -> Iterator[Any]:
    """A bar on standard error for many paths, where that is a terminal."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

    console = Console(stderr=True)
    if total < 2 or not console.is_terminal:
        yield lambda: None
        return
    columns = (*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("auditing", total=total)
        yield lambda: bar.advance(task)


def _write_files(
    reports: list[Report], sarif: Path | None, markdown: Path | None, html: Path | None
) -> None:
    from niblick import __version__
    from niblick.audit import render

    if sarif is not None:
        sarif.write_text(render.reports_sarif(reports, __version__), "utf-8")
    if markdown is not None:
        markdown.write_text(render.reports_markdown(reports), "utf-8")
    if html is not None:
        html.write_text(render.reports_html(reports), "utf-8")


def _print(reports: list[Report], *, as_json: bool, verbose: bool) -> None:
    from niblick.audit import render

    if as_json:
        sys.stdout.write(render.reports_json(reports) + "\n")
        return
    sys.stdout.write("\n".join(render.report_text(report, verbose=verbose) for report in reports))
    if len(reports) > 1:
        _print_summary(reports)


def _print_summary(reports: list[Report]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from niblick.audit.render.escape import plain

    table = Table(
        "path", "verdict", "breaches", "smoke", "recommendation", box=None, header_style="bold"
    )
    for report in reports:
        breaches = sum(finding.severity.value == "breach" for finding in report.findings)
        smoke = report.smoke.status if report.smoke else "NOT_RUN"
        near = Path(
            *Path(report.path).parts[-2:]
        )  # a full path would push the verdict out of sight
        cells = (near, report.verdict, breaches, smoke, report.recommendation.partition(":")[0])
        table.add_row(*(Text(plain(cell)) for cell in cells))
    sys.stdout.write("\n")
    Console(highlight=False).print(table)
