"""`niblick train RECIPE --data TEXT`: a run on a text of one's own, prepared in its directory."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from niblick.cli.imports import importing
from niblick.cli.runs import Options, run_once, run_seeds
from niblick.errors import DataError, NiblickError

if TYPE_CHECKING:
    from niblick.report.start import Start

STANDARD_INPUT = "-"


def train_on_text(
    begun: Start, source: str, out: Path | None, *, seeds: int | None, options: Options
) -> None:
    """Prepare `source` in the run directory, fit the recipe to it, say what was chosen, train."""
    with importing():
        from niblick.report.own_text import fit_data
        from niblick.report.run import run_directory
        from niblick.runtime import read_world
        from niblick.training.distributed import in_turn

    world = read_world(options.device)
    if source == STANDARD_INPUT and world.size > 1:
        raise NiblickError("--data - is read by one process; save the text for several")
    text = _read_standard_input() if source == STANDARD_INPUT else None
    with run_directory(world, out, name=begun.recipe.name) as place:
        if (place / "recipe.toml").exists():
            raise NiblickError(
                f"{str(place)!r} holds a run; continue it with --resume or choose another --out"
            )
        fitted = in_turn(
            world,
            lambda: fit_data(
                begun.recipe, source, place, text=text, given=begun.given, tokenizer=begun.tokenizer
            ),
        )
        if world.is_main:
            if out is None:
                print(f"run directory: {place}", file=sys.stderr)
            for line in fitted.said:
                print(line, file=sys.stderr, flush=True)
        if seeds is None:
            run_once(fitted.recipe, place, options)
        else:
            run_seeds(fitted.recipe, place, seeds, options)


def _read_standard_input() -> str:
    if sys.stdin.isatty():
        print("reading text from the terminal; end with Ctrl-D", file=sys.stderr)
    data = sys.stdin.buffer.read()
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"standard input is not UTF-8: byte {error.start} is 0x{data[error.start]:02X}"
        ) from None
    if not text.strip():
        raise DataError("standard input holds no text")
    return text
