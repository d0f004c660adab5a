"""One run from recipe to card, and several seeds of it: the order of work behind `niblick
train`.
"""

from __future__ import annotations

import json
import shlex
import sys
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from niblick.cli.imports import importing
from niblick.cli.jobs import TrainingJob, device_flags, job_pool, run_training
from niblick.errors import NiblickError, TrainingError
from niblick.executors import run_all
from niblick.files import read_json, write_atomically

if TYPE_CHECKING:
    from niblick.recipe import Recipe
    from niblick.runtime import World
    from niblick.scoring.card import Card
    from niblick.scoring.score import Score


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a run reports: `as_json` keeps standard output for one JSON document, `track` names
    trackers. `device` is where it computes, None for the best place. Without `packs` it ends with
    the score of the float weights and has no card. Several seeds run side by side on `jobs` or on
    an `executor`, if one is given.
    """

    resume: bool = False
    packs: bool = True
    as_json: bool = False
    quiet: bool = False
    track: tuple[str, ...] = ()
    jobs: int | None = None
    executor: str | None = None
    device: str | None = None


def run_once(recipe: Recipe, folder: Path | None, options: Options) -> Card | None:
    """Train, pack, score and write the card in `folder`, else in a new one under runs/; None in
    processes other than the main one, and where nothing is packed.
    """
    with importing():
        from niblick.cli.card import show_card
        from niblick.cli.progress import training
        from niblick.plan import make_plan
        from niblick.report.finish import check_packing, write_run_card
        from niblick.report.run import run_directory, train_and_score
        from niblick.report.tracking import TrackedRun, tracked
        from niblick.runtime import read_world

    world = read_world(options.device)
    for warning in check_packing(recipe, resuming=options.resume or not options.packs):
        if world.is_main and options.packs:
            _say(f"warning: {warning}")
    with run_directory(world, folder, name=recipe.name) as place:
        _tell(world, folder, place)
        names = options.track if world.is_main else ()
        run = TrackedRun(folder=place, recipe=recipe, resumed=options.resume)
        shown = training(make_plan(recipe.model), recipe, enabled=world.is_main)
        with tracked(names, run, _say) as trackers:
            with shown as (on_progress, on_stage):
                outcome = train_and_score(
                    recipe,
                    place,
                    world=world,
                    resume=options.resume,
                    packs=options.packs,
                    on_progress=on_progress,
                    on_stage=on_stage,
                    say=_say,
                    track=trackers.log if names else None,
                )
            if not world.is_main:
                return None
            if not options.packs:
                _show_score(outcome.floating, options)
                return None
            card = write_run_card(recipe, place, outcome, _say)
            trackers.take_card(card)
    if not options.quiet:
        show_card(card, options.as_json)
        _say(f"try it: niblick generate {shlex.quote(str(place))} --interactive")
    return card


def _show_score(score: Score, options: Options) -> None:
    from niblick.scoring.score_text import score_text

    if options.as_json:
        print(json.dumps(score.summary(), allow_nan=False))
    else:
        print(score_text(score))


def run_seeds(recipe: Recipe, folder: Path | None, count: int, options: Options) -> None:
    """Run `count` seeds into seed-N/ folders of `folder`, else of a new one under runs/, one after
    another or side by side, and summarise their cards.

    A seed whose card is already there is kept, and one that was begun is resumed.
    """
    with importing():
        from niblick.report.run import run_directory
        from niblick.runtime import read_world

    world = read_world(options.device)
    with run_directory(world, folder, name=recipe.name) as place:
        _tell(world, folder, place)
        _refuse_other(recipe, place, count)
        if world.size == 1:
            with job_pool(recipe, options.jobs, options.executor) as pool:
                if pool is not None:
                    _run_side_by_side(recipe, place, count, options, pool)
        elif options.jobs is not None or options.executor is not None:
            raise NiblickError("torchrun's processes train one run: no --jobs and no --executor")
        _run_seeds(recipe, place, count, options)


def _refuse_other(recipe: Recipe, folder: Path, count: int) -> None:
    """Seeds of another recipe are neither resumed nor summarised with those of this one."""
    from niblick.recipe import load_recipe

    for seed in range(recipe.seed, recipe.seed + count):
        path = folder / f"seed-{seed}" / "recipe.toml"
        if path.is_file() and load_recipe(path) != recipe.model_copy(update={"seed": seed}):
            raise TrainingError(
                f"{str(path.parent)!r} holds a run of another recipe; choose another --out or"
                " remove it"
            )


def _tell(world: World, asked: Path | None, place: Path) -> None:
    if world.is_main and asked is None:
        _say(f"run directory: {place}")


def _run_side_by_side(
    recipe: Recipe, folder: Path, count: int, options: Options, pool: Executor
) -> None:
    """Each seed that has no card in a process of its own; the first failure ends it."""
    from niblick.recipe import recipe_to_toml
    from niblick.registry import loaded_plugins

    source = folder / "seeds.toml"
    write_atomically(source, (recipe_to_toml(recipe).encode(),))
    flags = (*(f"--track={name}" for name in options.track), *device_flags(options.device))
    jobs = [
        TrainingJob(str(source), str(folder / f"seed-{seed}"), seed, loaded_plugins(), flags)
        for seed in range(recipe.seed, recipe.seed + count)
        if not (folder / f"seed-{seed}" / "card.json").is_file()
    ]
    for job in jobs:
        print(f"seed {job.seed}: {job.folder}", file=sys.stderr)
    for _ in run_all(run_training, jobs, pool):
        pass


def _run_seeds(recipe: Recipe, folder: Path, count: int, options: Options) -> None:
    from niblick.cli.card import show_card
    from niblick.scoring.seeds import summarise_seeds, write_seeds

    cards = []
    for seed in range(recipe.seed, recipe.seed + count):
        place, one = folder / f"seed-{seed}", recipe.model_copy(update={"seed": seed})
        done = place / "card.json"
        if done.is_file():
            cards.append(read_json(done))
            continue
        begun = any((place / "checkpoints").glob("step-*"))
        print(f"seed {seed} of {recipe.seed}..{recipe.seed + count - 1}: {place}", file=sys.stderr)
        card = run_once(one, place, replace(options, resume=begun, quiet=True))
        if card is not None:
            cards.append(card)
    if len(cards) == count:
        summary = summarise_seeds(cards)
        write_seeds(summary, folder)
        show_card(summary, options.as_json)


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
