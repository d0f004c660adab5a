"""Options that several commands share, and how a recipe is read from them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from niblick.recipe import Recipe

ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="An artifact, a checkpoint or a run directory.")
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
RecipeArgument = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A shipped recipe's name or a TOML file.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a recipe key; repeatable."),
]
DurationOption = Annotated[
    str | None, typer.Option(help='Training budget: "600s", "3500 steps" or "2e6 tokens".')
]
MaxBytesOption = Annotated[int | None, typer.Option(help="Cap of the artifact in bytes (decimal).")]
SeedOption = Annotated[int | None, typer.Option(help="Seed of initialisation and data order.")]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]


def read_recipe(
    source: str,
    overrides: list[str] | None,
    *,
    duration: str | None = None,
    max_bytes: int | None = None,
    seed: int | None = None,
) -> Recipe:
    """The recipe with `--set` overrides and the flags that stand for one, flags last.

    Paths of data and tokenizer become absolute: a run can go on from another folder.
    """
    from niblick.recipe import load_recipe

    flags = [
        f'training.duration="{duration}"' if duration is not None else None,
        f"artifact.max_bytes={max_bytes}" if max_bytes is not None else None,
        f"seed={seed}" if seed is not None else None,
    ]
    recipe = load_recipe(source, [*(overrides or []), *(flag for flag in flags if flag)])
    data = recipe.data.model_copy(
        update={key: _absolute(key, getattr(recipe.data, key)) for key in ("corpus", "tokenizer")}
    )
    return recipe.model_copy(update={"data": data}) if data != recipe.data else recipe


def _absolute(key: str, name: str) -> str:
    """A path that is there, whole; names of corpora and tokenizers stay as they are."""
    if not Path(name).exists():
        return name
    from niblick.data.corpus import corpora
    from niblick.data.prepare import TRAINED
    from niblick.text.tokenizer import CHALLENGE

    named = name in corpora if key == "corpus" else name in {*TRAINED, "bytes", CHALLENGE}
    return name if named else str(Path(name).absolute())
