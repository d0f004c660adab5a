"""`niblick train`: train a recipe, pack it, score it from the file, print its card; one seed or
several.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from niblick.cli.completion import models, words
from niblick.cli.imports import importing
from niblick.cli.jobs import JobsOption
from niblick.cli.options import (
    DeviceOption,
    DurationOption,
    ExecutorOption,
    JsonOption,
    MaxBytesOption,
    OptionalRecipe,
    SeedOption,
    SetOption,
)
from niblick.errors import NiblickError

if TYPE_CHECKING:
    from niblick.recipe import Recipe
    from niblick.report.start import Start


DataOption = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT",
        help="Your own text: a folder, a file, - for standard input, or prepared shards.",
    ),
]
FromOption = Annotated[
    str | None,
    typer.Option(
        "--from",
        metavar="MODEL",
        help="A model whose weights, shape and tokenizer to start with; RECIPE may be left out.",
        autocompletion=models,
    ),
]
TokenizerOption = Annotated[
    str | None,
    typer.Option(help="With --data: a run, model or .model file whose tokenizer to use."),
]
SeedsOption = Annotated[
    int | None, typer.Option(min=1, help="Train this many seeds and summarise them.")
]
OutOption = Annotated[Path | None, typer.Option(help="Run directory; else a new one under runs/.")]
PackOption = Annotated[
    bool,
    typer.Option(
        "--pack/--no-pack", help="Pack and write the card, or end with the float weights' score."
    ),
]
ResumeOption = Annotated[
    Path | None,
    typer.Option(metavar="RUN", help="Continue the run in this directory where it stopped."),
]
TrackOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="Also tell tensorboard, trackio or wandb what is measured; repeatable.",
        autocompletion=words("tensorboard", "trackio", "wandb"),
    ),
]


def train_command(
    recipe: OptionalRecipe = None,
    data: DataOption = None,
    init_from: FromOption = None,
    tokenizer: TokenizerOption = None,
    overrides: SetOption = None,
    duration: DurationOption = None,
    max_bytes: MaxBytesOption = None,
    seed: SeedOption = None,
    seeds: SeedsOption = None,
    jobs: JobsOption = None,
    executor: ExecutorOption = None,
    out: OutOption = None,
    resume: ResumeOption = None,
    track: TrackOption = None,
    packs: PackOption = True,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train RECIPE, or on from MODEL; pack it under its byte cap, score it from the packed file and
    print its card.
    """
    from niblick.cli.runs import Options, run_once, run_seeds

    several = data is not None or seeds is not None
    _refuse_idle(one=seeds is None, side=(jobs, executor), packs=packs, several=several)
    options = Options(as_json=as_json, track=_trackers(track), packs=packs, device=device)
    options = replace(options, jobs=jobs, executor=executor)
    if resume is not None:
        given = (
            recipe,
            data,
            init_from,
            tokenizer,
            overrides,
            duration,
            max_bytes,
            seed,
            seeds,
            out,
        )
        run_once(_resumed(resume, given), resume, replace(options, resume=True))
        return
    named = {"duration": duration, "max_bytes": max_bytes, "seed": seed}
    begun = _start(recipe, overrides or (), init_from=init_from, tokenizer=tokenizer, **named)
    if data is not None:
        from niblick.cli.own_text import train_on_text

        train_on_text(begun, data, out, seeds=seeds, options=options)
    elif tokenizer is not None:
        raise NiblickError("--tokenizer goes with --data; else --set data.tokenizer=...")
    elif seeds is None:
        run_once(_shaped(begun, overrides or (), device), out, options)
    else:
        run_seeds(_shaped(begun, overrides or (), device), out, seeds, options)


def _start(recipe: str | None, overrides: Sequence[str], **given: Any) -> Start:
    with importing():
        from niblick.report.start import start

    return start(recipe, overrides, **given)


def _shaped(begun: Start, overrides: Sequence[str], device: str | None) -> Recipe:
    """The recipe in the shape that its cap wants, which the main process says."""
    with importing():
        from niblick.report.shapes import fit_named
        from niblick.runtime import read_world
    fitted, said = fit_named(begun.shaped_as, begun.recipe, overrides)
    if read_world(device).is_main:
        for line in said:
            print(line, file=sys.stderr, flush=True)
    return fitted


def _refuse_idle(*, one: bool, side: tuple[object, object], packs: bool, several: bool) -> None:
    """Options that would do nothing."""
    if one and side != (None, None):
        raise NiblickError("--jobs and --executor go with --seeds: one run is one job")
    if several and not packs:
        raise NiblickError("--no-pack trains one seed of a recipe: give neither --data nor --seeds")


def _trackers(names: list[str] | None) -> tuple[str, ...]:
    if not names:
        return ()
    from niblick.report.tracking import check_trackers

    return check_trackers(names)


def _resumed(folder: Path, given: tuple[object, ...]) -> Recipe:
    """The run's own recipe; nothing else may be `given`."""
    from niblick.recipe import load_recipe

    if any(value is not None for value in given):
        raise NiblickError(
            "--resume RUN takes everything from the run: give no recipe and no other setting"
        )
    if not (folder / "recipe.toml").is_file():
        raise NiblickError(f"nothing to resume in {str(folder)!r}: it holds no recipe.toml")
    return load_recipe(folder / "recipe.toml")
