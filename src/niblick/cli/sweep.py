"""`niblick sweep`: train variants of a recipe with the same seeds, equally long, and show what each
is worth. `niblick ablate` is the same command, on the validation split.

Every run is a process of its own (`python -m niblick train`) in OUT/VARIANT/seed-N. What is
finished is kept and what was begun is resumed, so the same command continues after any
interruption.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from niblick.cli.completion import techniques
from niblick.cli.jobs import JobsOption, job_pool
from niblick.cli.options import (
    DeviceOption,
    DurationOption,
    ExecutorOption,
    JsonOption,
    MaxBytesOption,
    RecipeArgument,
    SetOption,
)
from niblick.errors import NiblickError
from niblick.extras import needs
from niblick.files import write_atomically
from niblick.runtime import choose_device, read_world
from niblick.scoring.sweep import BASELINE

if TYPE_CHECKING:
    from niblick.recipe import Recipe

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")


VariantOption = Annotated[
    list[str] | None,
    typer.Option(metavar="TEXT", help='A variant: "NAME: KEY=VALUE; KEY=VALUE ...". Repeatable.'),
]
VariantsOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Variants in TOML: one table of recipe keys for each."),
]
WithoutOption = Annotated[
    list[str] | None,
    typer.Option(
        "--without",
        metavar="NAME",
        help='A variant without a technique, or several: "a+b". Repeatable.',
        autocompletion=techniques,
    ),
]
SeedsOption = Annotated[int, typer.Option(min=1, help="Runs per variant, with consecutive seeds.")]
ScoreOption = Annotated[
    str, typer.Option(help="packed, or float: the weights as trained, nothing is packed.")
]
SplitOption = Annotated[
    str | None,
    typer.Option(
        help="development: part of the training text, which then does not train; or validation"
        " (what ablate takes)."
    ),
]
BudgetOption = Annotated[
    str | None, typer.Option(help='Time for all of it, such as "45 min"; then it stops.')
]
StopFromOption = Annotated[
    float,
    typer.Option(
        min=0,
        max=1,
        help="Share of a run from which it is stopped when it is behind; 1: never within a run.",
    ),
]
StopOption = Annotated[
    bool, typer.Option("--stop/--no-stop", help="Give up variants that are behind, or none.")
]
OutOption = Annotated[Path | None, typer.Option(help="Folder of the runs; else runs/RECIPE-sweep.")]
LockOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Run only while this file's lock is held (as flock does)."),
]


def sweep_command(
    ctx: typer.Context,
    recipe: RecipeArgument,
    variant: VariantOption = None,
    variants: VariantsOption = None,
    leave_out: WithoutOption = None,
    seeds: SeedsOption = 3,
    overrides: SetOption = None,
    duration: DurationOption = None,
    max_bytes: MaxBytesOption = None,
    score: ScoreOption = "packed",
    split: SplitOption = None,
    budget: BudgetOption = None,
    stop_from: StopFromOption = 0.75,
    stops: StopOption = True,
    out: OutOption = None,
    lock: LockOption = None,
    device: DeviceOption = None,
    jobs: JobsOption = None,
    executor: ExecutorOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train RECIPE and variants of it with the same seeds; print differences in bits per byte with
    confidence intervals.
    """
    from niblick.cli.trials import Rules, run_sweep
    from niblick.scoring.sweep import summarise_sweep

    command = ctx.info_name or "sweep"
    split = split or ("validation" if command == "ablate" else "development")
    _check_choice("score", score, ("packed", "float"))
    _check_choice("split", split, ("development", "validation"))
    common = [*(overrides or ()), f"data.development={str(split == 'development').lower()}"]
    texts = _once([*_from_file(variants).items(), *map(_from_text, variant or ())])
    recipes = _recipes(recipe, common, texts, leave_out or [], duration, max_bytes)
    chosen = recipes[BASELINE]
    _check_equal(recipes)
    _check_device(device)
    folder = (out or Path("runs") / f"{chosen.name}-{command}").absolute()
    rules = Rules(
        packed=score == "packed",
        stops=stops,
        stop_from=stop_from,
        deadline=None if budget is None else time.time() + _seconds(budget),
        lock=None if lock is None else str(lock.absolute()),
        device=device,
    )
    with job_pool(chosen, jobs, executor) as pool:
        trials, notes, failed = run_sweep(recipes, folder, seeds, rules, pool)
    shared = {"score": score, "split": split, "duration": chosen.training.duration}
    _show(summarise_sweep(chosen.name, trials, settings=shared, notes=notes), folder, as_json)
    if failed:
        print(f"niblick: {failed}", file=sys.stderr)
        raise typer.Exit(1)
    if "not finished" in notes.values():
        print("niblick: the time is up; the same command goes on", file=sys.stderr)
        raise typer.Exit(3)


def _show(found: dict[str, Any], folder: Path, as_json: bool) -> None:
    """Keep the table as JSON and Markdown in the sweep's folder, and print it."""
    from niblick.scoring.sweep import sweep_markdown

    text = sweep_markdown(found)
    document = json.dumps(found, indent=1, allow_nan=False) + "\n"
    write_atomically(folder / "sweep.json", (document.encode(),))
    write_atomically(folder / "sweep.md", (text.encode(),))
    print(json.dumps(found, allow_nan=False) if as_json else text)


def _recipes(
    source: str,
    common: list[str],
    texts: Mapping[str, list[str]],
    leave_out: list[str],
    duration: str | None,
    max_bytes: int | None,
) -> dict[str, Recipe]:
    """The recipe as it is, and each variant by name; `NiblickError` where there is none."""
    from niblick.data.recipes import read_recipe
    from niblick.scoring.techniques import used_techniques, without

    def read(settings: list[str]) -> Recipe:
        return read_recipe(source, [*common, *settings], duration=duration, max_bytes=max_bytes)

    recipes = {BASELINE: read([])}
    for name, settings in texts.items():
        _add(recipes, name, read(settings))
    for name in leave_out:
        _add(recipes, f"without-{name}", without(recipes[BASELINE], name))
    if len(recipes) == 1:
        known = ", ".join(used_techniques(recipes[BASELINE]))
        raise NiblickError(
            "give --variant, --variants or --without NAME"
            f" (`niblick techniques {source}` tells what each is); it uses: {known}"
        )
    return recipes


def _check_device(device: str | None) -> None:
    """Refuse a device that is not there before anything is trained."""
    if device is not None:
        with needs("niblick sweep"):
            choose_device(read_world(device))


def _check_choice(option: str, value: str, accepted: tuple[str, ...]) -> None:
    if value not in accepted:
        raise NiblickError(f"--{option} {value!r} is neither {' nor '.join(accepted)}")


def _seconds(text: str) -> float:
    from niblick.units import Duration

    budget = Duration.parse(text)
    if budget.unit != "seconds":
        raise NiblickError(f'--budget {text!r} is not a time such as "45 min"')
    return budget.amount


def _from_text(text: str) -> tuple[str, list[str]]:
    name, colon, settings = text.partition(":")
    found = [each.strip() for each in settings.split(";") if each.strip()]
    if not colon or not found:
        raise NiblickError(f'--variant {text!r} is not like "NAME: KEY=VALUE; KEY=VALUE"')
    return name.strip(), found


def _once(variants: list[tuple[str, list[str]]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, settings in variants:
        if name in found:
            raise NiblickError(f"variant {name!r} is given twice")
        found[name] = settings
    return found


def _from_file(path: Path | None) -> dict[str, list[str]]:
    """`key=value` settings of each table in a TOML file."""
    from niblick.recipe.load import read_tables, toml_value

    if path is None:
        return {}
    return {
        name: [f"{key}={toml_value(value)}" for key, value in _flat(table)]
        for name, table in read_tables(path).items()
    }


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _add(recipes: dict[str, Recipe], name: str, variant: Recipe) -> None:
    if not _NAME.fullmatch(name):
        raise NiblickError(
            f"variant {name[:80]!r}: names are up to 64 letters, digits, dots, plus and minus signs"
        )
    if name in recipes:
        raise NiblickError(f"variant {name!r} is given twice, or is the name of the recipe itself")
    if same := next((other for other, known in recipes.items() if known == variant), None):
        raise NiblickError(f"variant {name!r} is the same recipe as {same!r}")
    recipes[name] = variant


def _check_equal(recipes: Mapping[str, Recipe]) -> None:
    """Refuse runs that are not equally long, or not of one text."""
    from niblick.units import Duration

    first = next(iter(recipes.values()))
    length = Duration.parse(first.training.duration)
    for name, recipe in recipes.items():
        if Duration.parse(recipe.training.duration) != length:
            raise NiblickError(
                f"variant {name!r} sets training.duration: all train equally long; use --duration"
            )
        batches = recipe.training.batch_tokens != first.training.batch_tokens
        if length.unit == "steps" and batches:
            raise NiblickError(
                f"variant {name!r} has other batches, so equal steps are not equal tokens; give"
                ' --duration in tokens, such as "2e6 tokens"'
            )
        if recipe.data.corpus != first.data.corpus or recipe.seed != first.seed:
            raise NiblickError(
                f"variant {name!r} sets data.corpus or seed: all have one text and one row of seeds"
            )
