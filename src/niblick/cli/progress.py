"""Progress on standard error: one bar, wiped away at its end; plain lines where it is no terminal.

A terminal shows what is being done, the share of it that is done and the time left; a file or a
pipe gets a line every half minute.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Timer
from typing import TYPE_CHECKING

from niblick.units import format_seconds

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

    from niblick.plan import Plan
    from niblick.recipe import Recipe
    from niblick.training.progress import Progress as Report

_EVERY = 30.0  # seconds between plain lines
_SOON = 2.0  # seconds before which nothing can be said of the time left
Stages = Callable[[str, float], None]


@contextmanager
def stages(*, enabled: bool = True) -> Iterator[Stages]:
    """A callback that is told a stage's name and the share of it that is done."""
    with _display(enabled) as show:
        yield _timed(show)


@contextmanager
def working(what: str, *, enabled: bool = True) -> Iterator[None]:
    """Say on standard error what takes a while and cannot tell how far it is: a spinner on a
    terminal, elsewhere a line once it has taken two seconds.
    """
    if not enabled:
        yield
    elif sys.stderr.isatty():
        from rich.console import Console
        from rich.markup import escape

        with Console(stderr=True).status(f"{escape(what)} ..."):
            yield
    else:
        said = Timer(_SOON, print, (f"{what} ...",), {"file": sys.stderr, "flush": True})
        said.daemon = True
        said.start()
        try:
            yield
        finally:
            said.cancel()


@contextmanager
def training(
    plan: Plan, recipe: Recipe, *, enabled: bool
) -> Iterator[tuple[Callable[[Report], None] | None, Stages | None]]:
    """Callbacks for the trainer and for what follows it, of one display; None where not
    `enabled`.
    """
    if not enabled:
        yield None, None
        return
    print(
        f"training {recipe.name}: {plan.parameter_count:,} parameters for"
        f" {recipe.training.duration} (seed {recipe.seed})",
        file=sys.stderr,
        flush=True,
    )
    with _display(True) as show:
        follow, validated = _timed(show), ""

        def trained(report: Report) -> None:
            nonlocal validated
            if report.validation_bpb is not None:
                validated = describe_validation(report)
            told = f"{describe(report)}{validated}"
            show(
                "training", report.fraction, report.seconds_left, told, bool(report.validation_bpb)
            )

        yield trained, follow


def describe(report: Report) -> str:
    """Where a run is: step, training loss, speed."""
    rounding = ", late QAT" if report.rounding else ""
    return (
        f"step {report.step:,}: training loss {report.loss:.4f} ({report.bpb:.4f} bits per byte),"
        f" {report.tokens_per_second:,.0f} tokens/s{rounding}"
    )


def describe_validation(report: Report) -> str:
    """What the newest validation found, and at which step."""
    return (
        f"; validation loss {report.validation_loss:.4f} ({report.validation_bpb:.4f} bits per"
        f" byte) at step {report.step:,}"
    )


# (stage, share done, seconds left or None, what to tell, whether to tell it at once)
Show = Callable[[str, float, float | None, str, bool], None]


def _timed(show: Show) -> Stages:
    """Adds the time left, from the time since the stage began."""
    stage, began = "", 0.0

    def told(name: str, share: float) -> None:
        nonlocal stage, began
        now = time.monotonic()
        if name != stage:
            stage, began = name, now
        spent = now - began
        left = spent * (1 - share) / share if share > 0 and spent > _SOON else None
        show(name, share, left, "", False)

    return told


@contextmanager
def _display(enabled: bool) -> Iterator[Show]:
    if not enabled:
        yield lambda stage, share, left, told, now: None
    elif sys.stderr.isatty():
        with _bar() as bar:
            yield _on_bar(bar)
    else:
        yield _lines()


def _bar() -> Bar:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
    from rich.table import Column

    words = Column(ratio=1)  # as wide as there is room, broken between words
    return Progress(
        BarColumn(bar_width=16),
        TaskProgressColumn(),
        TextColumn("{task.description}", table_column=words, markup=False),
        console=Console(stderr=True),
        transient=True,
        expand=True,
    )


def _on_bar(bar: Bar) -> Show:
    task = bar.add_task("starting", total=1.0)

    def show(stage: str, share: float, left: float | None, told: str, now: bool) -> None:
        bar.update(task, completed=share, description=_line(stage, left, told))

    return show


def _lines() -> Show:
    last = time.monotonic() - _EVERY + _SOON  # what is soon over says nothing

    def show(stage: str, share: float, left: float | None, told: str, now: bool) -> None:
        nonlocal last
        if now or time.monotonic() - last >= _EVERY:
            last = time.monotonic()
            with suppress(OSError):  # who reads along may leave
                line = f"{100 * share:5.1f} %  {_line(stage, left, told)}"
                print(line, file=sys.stderr, flush=True)

    return show


def _line(stage: str, left: float | None, told: str) -> str:
    time_left = "" if left is None or left < 0.5 else f", {format_seconds(left)} left"
    return f"{stage}{time_left}{': ' if told else ''}{told}"
