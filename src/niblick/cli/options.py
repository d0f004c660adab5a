"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

from niblick.cli.completion import models, recipes, settings
from niblick.units import parse_size

ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="An artifact, a checkpoint, a run directory, or the name of a shipped model.",
        autocompletion=models,
    ),
]
TokenizerOption = Annotated[
    str | None,
    typer.Option(
        help="A .model file, another model, fineweb-1024 or bytes: for a model that brings none."
    ),
]
ThreadsOption = Annotated[
    int | None, typer.Option(help="Processor threads; one per core if not given.")
]
_RECIPE = typer.Argument(
    metavar="RECIPE", help="A shipped recipe's name or a TOML file.", autocompletion=recipes
)
RecipeArgument = Annotated[str, _RECIPE]
OptionalRecipe = Annotated[str | None, _RECIPE]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override a recipe key; repeatable.",
        autocompletion=settings,
    ),
]
DurationOption = Annotated[
    str | None, typer.Option(help='Training budget: "600s", "3500 steps" or "2e6 tokens".')
]
MaxBytesOption = Annotated[
    int | None,
    typer.Option(
        parser=parse_size, metavar="N", help="Cap of the artifact in bytes: 300000, 300k, 16MiB."
    ),
]
SeedOption = Annotated[int | None, typer.Option(help="Seed of initialisation and data order.")]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]
ExecutorOption = Annotated[
    str | None,
    typer.Option(
        metavar="MODULE:FACTORY",
        help="What returns a concurrent.futures executor to run on, e.g. one of a cluster.",
    ),
]
DeviceOption = Annotated[
    str | None,
    typer.Option(help="Where torch computes: cpu, cuda, cuda:N, mps or auto (CUDA if present)."),
]
