"""`niblick ablate`: train a recipe and its variants without named techniques, and show what each is
worth.

Every run is a process of its own (`python -m niblick train`) in OUT/VARIANT/seed-N. What is
finished is kept and what was begun is resumed, so the same command continues after any
interruption.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from niblick.cli.options import (
    DeviceOption,
    DurationOption,
    JsonOption,
    MaxBytesOption,
    RecipeArgument,
    SetOption,
)
from niblick.errors import NiblickError, TrainingError
from niblick.files import read_json
from niblick.runtime import choose_device, needs_lab, read_world

if TYPE_CHECKING:
    from niblick.recipe import Recipe


@dataclass(frozen=True)
class Job:
    """One run: the recipe's file, the run directory and the seed; plain values, so that any
    executor can carry it.
    """

    recipe: str
    folder: str
    seed: int
    plugins: tuple[str, ...] = ()
    device: str | None = None


def ablate_command(
    recipe: RecipeArgument,
    leave_out: Annotated[
        list[str] | None,
        typer.Option(
            "--without",
            metavar="NAME",
            help='A technique to leave out, or several: "a+b". Repeatable.',
        ),
    ] = None,
    seeds: Annotated[
        int, typer.Option(min=1, help="Runs per variant, with consecutive seeds.")
    ] = 3,
    overrides: SetOption = None,
    duration: DurationOption = None,
    max_bytes: MaxBytesOption = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the runs; else runs/RECIPE-ablation.")
    ] = None,
    jobs: Annotated[
        int, typer.Option(min=1, help="Runs side by side (durations in steps or tokens only).")
    ] = 1,
    executor: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:NAME",
            help="A concurrent.futures executor to run on, e.g. one of a cluster.",
        ),
    ] = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train RECIPE as it is and without each named technique; print bpb differences with confidence
    intervals.
    """
    from niblick.data.recipes import read_recipe
    from niblick.scoring.ablate import ablation_markdown, summarise_ablation

    chosen = read_recipe(recipe, overrides or (), duration=duration, max_bytes=max_bytes)
    variants = make_variants(chosen, leave_out or [])
    _check_clock(chosen, side_by_side=jobs > 1 or executor is not None)
    _check_device(device)
    folder = (out or Path("runs") / f"{chosen.name}-ablation").absolute()
    work = {
        name: make_jobs(variant, folder / name, seeds, device) for name, variant in variants.items()
    }
    with _executor(jobs, executor) as pool:
        run_jobs([job for batch in work.values() for job in batch], pool)
    found = summarise_ablation(
        chosen.name, {name: [read_card(job) for job in batch] for name, batch in work.items()}
    )
    text = ablation_markdown(found)
    (folder / "ablation.json").write_text(
        json.dumps(found, indent=1, allow_nan=False) + "\n", "utf-8"
    )
    (folder / "ablation.md").write_text(text, "utf-8")
    print(json.dumps(found, allow_nan=False) if as_json else text)


def make_variants(recipe: Recipe, leave_out: list[str]) -> dict[str, Recipe]:
    """Variant name -> recipe, the whole one first; `NiblickError` where nothing is left out or a
    name is wrong.
    """
    from niblick.scoring.ablate import BASELINE
    from niblick.scoring.techniques import used_techniques, without

    if not leave_out:
        raise NiblickError(
            f"give --without NAME; {recipe.name} uses: {', '.join(used_techniques(recipe))}"
        )
    return {BASELINE: recipe, **{f"without-{name}": without(recipe, name) for name in leave_out}}


def make_jobs(recipe: Recipe, folder: Path, seeds: int, device: str | None = None) -> list[Job]:
    """Write the variant's recipe into `folder`, and list its runs.

    Raises `TrainingError` where the folder holds runs of another recipe.
    """
    from niblick.recipe import load_recipe, recipe_to_toml
    from niblick.registry import loaded_plugins

    path = folder / "recipe.toml"
    if path.is_file() and load_recipe(path) != recipe:
        raise TrainingError(
            f"{str(folder)!r} holds runs of another recipe; choose another --out or remove it"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(recipe_to_toml(recipe), "utf-8")
    except OSError as error:
        raise TrainingError(f"cannot write {str(path)!r}: {error.strerror}") from None
    return [
        Job(str(path), str(folder / f"seed-{s}"), s, loaded_plugins(), device)
        for s in range(recipe.seed, recipe.seed + seeds)
    ]


def run_jobs(jobs: list[Job], pool: Executor | None) -> None:
    """Run what is not finished, in order here or side by side on `pool`; the first failure ends
    it.
    """
    left = [job for job in jobs if not _card_path(job).is_file()]
    for number, job in enumerate(left, 1):
        print(f"[{number}/{len(left)}] {job.folder}", file=sys.stderr)
        if pool is None:
            run_job(job)
    if pool is not None:
        futures = [pool.submit(run_job, job) for job in left]
        try:
            for future in futures:
                future.result()
        finally:
            for future in futures:
                future.cancel()


def run_job(job: Job) -> None:
    """Train one run in a process of its own, resuming it if it was begun; its output goes to
    FOLDER/log.txt.
    """
    folder = Path(job.folder)
    if any((folder / "checkpoints").glob("step-*")):
        arguments = ["--resume", job.folder]
    else:
        arguments = [job.recipe, "--seed", str(job.seed), "--out", job.folder]
    arguments += [f"--plugin={module}" for module in job.plugins]
    arguments += [] if job.device is None else ["--device", job.device]
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "log.txt"
    with log.open("ab") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "niblick", "train", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
        )
        try:
            code = process.wait()
        except BaseException:
            process.wait()  # it was stopped too, and writes its checkpoint
            raise
    if code:
        lines = log.read_text("utf-8", "replace").strip().splitlines()
        raise TrainingError(
            f"{job.folder} failed with exit code {code}: {lines[-1] if lines else 'no output'}"
        )


def read_card(job: Job) -> dict[str, Any]:
    """The card of a finished run."""
    path = _card_path(job)
    return read_json(path)


def _card_path(job: Job) -> Path:
    return Path(job.folder) / "card.json"


def _check_device(device: str | None) -> None:
    """Refuse a device that is not there before anything is trained."""
    if device is not None:
        with needs_lab("niblick ablate"):
            choose_device(read_world(device))


def _check_clock(recipe: Recipe, *, side_by_side: bool) -> None:
    from niblick.units import Duration

    if side_by_side and Duration.parse(recipe.training.duration).unit == "seconds":
        raise NiblickError(
            "runs side by side slow each other down: give --duration in steps or tokens, not "
            f"{recipe.training.duration!r}, or leave --jobs and --executor out"
        )


@contextmanager
def _executor(jobs: int, name: str | None) -> Iterator[Executor | None]:
    """None to run here one after another, threads that wait for processes, or the executor that
    NAME makes.
    """
    if name is None:
        with ThreadPoolExecutor(jobs) if jobs > 1 else nullcontext() as pool:
            yield pool
        return
    module, _, attribute = name.partition(":")
    try:
        make = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise NiblickError(
            f'--executor {name!r} is not like "concurrent.futures:ProcessPoolExecutor": {error}'
        ) from None
    with make() as pool:
        yield pool
