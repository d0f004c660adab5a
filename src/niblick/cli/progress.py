"""The progress bar of a training run: loss, bits per byte, tokens per second, time left."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

if TYPE_CHECKING:
    from niblick.plan import Plan
    from niblick.recipe import Recipe
    from niblick.training.progress import Progress as Report

_EVERY_LINES = 30  # seconds between plain lines where there is no terminal


@contextmanager
def progress_bar(
    plan: Plan, recipe: Recipe, *, enabled: bool
) -> Iterator[Callable[[Report], None] | None]:
    """A callback for the trainer that draws on standard error (plain lines where it is no
    terminal).
    """
    if not enabled:
        yield None
        return
    console = Console(stderr=True)
    console.print(
        f"training {recipe.name}: {plan.parameter_count:,} parameters for"
        f" {recipe.training.duration} (seed {recipe.seed})",
        highlight=False,
    )
    if not console.is_terminal:
        yield _line_writer()
        return
    bar = Progress(
        BarColumn(bar_width=24),
        TaskProgressColumn(),
        TextColumn("{task.description}"),
        console=console,
    )
    task = bar.add_task("starting", total=1.0)
    with bar:
        yield lambda report: bar.update(
            task, completed=report.fraction, description=describe(report)
        )


def describe(report: Report) -> str:
    """One line: where the run is and how it does."""
    validation = f"  val {report.validation_bpb:.4f}" if report.validation_bpb is not None else ""
    rounding = "  QAT" if report.rounding else ""
    minutes, seconds = divmod(round(report.seconds_left), 60)
    return (
        f"step {report.step:,}  loss {report.loss:.4f}  bpb {report.bpb:.4f}{validation}  "
        f"{report.tokens_per_second:,.0f} tok/s  ETA {minutes}:{seconds:02d}{rounding}"
    )


def _line_writer() -> Callable[[Report], None]:
    last = -float(_EVERY_LINES)

    def write(report: Report) -> None:
        nonlocal last
        if report.seconds - last >= _EVERY_LINES or report.validation_bpb is not None:
            last = report.seconds
            print(
                f"{100 * report.fraction:5.1f} %  {describe(report)}", file=sys.stderr, flush=True
            )

    return write
