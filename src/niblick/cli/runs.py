"""One run from recipe to card, and several seeds of it: the order of work behind `niblick
train`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from niblick.cli.imports import importing
from niblick.files import read_json

if TYPE_CHECKING:
    from niblick.data.dataset import Dataset
    from niblick.recipe import Recipe
    from niblick.report.run import Outcome
    from niblick.runtime import World
    from niblick.scoring.card import Card


_HOPELESS = 1.1  # An estimate may be wrong by a tenth.


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a run reports: `as_json` keeps standard output for one JSON document."""

    resume: bool = False
    as_json: bool = False
    quiet: bool = False


def run_once(recipe: Recipe, folder: Path | None, options: Options) -> Card | None:
    """Train, pack, score and write the card in `folder`, else in a new one under runs/; None in
    processes other than the main one.
    """
    with importing():
        from niblick.cli.card import show_card
        from niblick.cli.progress import progress_bar
        from niblick.plan import make_plan
        from niblick.report.run import run_directory, train_and_score
        from niblick.runtime import read_world

    world = read_world()
    for warning in _check_packing(recipe, options):
        if world.is_main:
            _say(f"warning: {warning}")
    with run_directory(world, folder, name=recipe.name) as place:
        _tell(world, folder, place)
        with progress_bar(make_plan(recipe.model), recipe, enabled=world.is_main) as report:
            outcome = train_and_score(
                recipe, place, world=world, resume=options.resume, on_progress=report, say=_say
            )
        if not world.is_main:
            return None
        card = _card(recipe, place, outcome)
    if not options.quiet:
        show_card(card, options.as_json)
    return card


def run_seeds(recipe: Recipe, folder: Path | None, count: int, options: Options) -> None:
    """Run `count` seeds into seed-N/ folders of `folder`, else of a new one under runs/, one after
    another, and summarise their cards.

    A seed whose card is already there is kept, and one that was begun is resumed.
    """
    with importing():
        from niblick.report.run import run_directory
        from niblick.runtime import read_world

    world = read_world()
    with run_directory(world, folder, name=recipe.name) as place:
        _tell(world, folder, place)
        _run_seeds(recipe, place, count, options)


def _tell(world: World, asked: Path | None, place: Path) -> None:
    if world.is_main and asked is None:
        _say(f"run directory: {place}")


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


def _card(recipe: Recipe, folder: Path, outcome: Outcome) -> Card:
    from niblick.plan import make_plan
    from niblick.runtime import describe_environment
    from niblick.scoring.card import make_card, write_card

    dataset, result, packed = outcome.dataset, outcome.result, outcome.packed
    assert packed is not None
    baselines = _baselines(dataset)
    tokenizer = dataset.tokenizer
    card = make_card(
        recipe,
        make_plan(recipe.model),
        floating=outcome.floating,
        packed=outcome.scored,
        artifact={"bytes": packed.size, "ledger": packed.ledger.to_json(), "choice": packed.choice},
        training={
            "seconds": result.seconds + packed.calibration_seconds,
            "tokens": result.tokens,
            "steps": result.steps,
            "compiled": result.compiled,
            "precision": result.precision,
            "calibration": _calibration(outcome),
            "passes": result.tokens / max(dataset.token_count("train"), 1),
        },
        data={
            "corpus": dataset.name,
            "attribution": dataset.attribution,
            "tokenizer": tokenizer.name,
            "lossless": tokenizer.lossless,
            **_own(dataset),
        },
        baselines=baselines,
        environment=describe_environment(),
    )
    write_card(card, folder)
    return card


def _baselines(dataset: Dataset) -> dict[str, float]:
    """What compressors reach on the held-out text, where it is not too large for them."""
    from niblick.runtime import cache_folder
    from niblick.scoring.baselines import LARGEST, compressor_baselines, take_documents
    from niblick.scoring.card import LEAST

    held_out = take_documents(dataset.texts("validation"), LARGEST)
    if held_out.cut or len(held_out.text) < LEAST:
        return {}
    _say("measuring general compressors on the same text ...")
    train = take_documents(dataset.texts("train"), LARGEST)
    found = compressor_baselines(train.text, held_out.text, cache_folder())
    part = f", with {LARGEST // 10**6} MB of it" if train.cut else ""
    return {f"{name}{part}": bpb for name, bpb in found.items()}


def _own(dataset: Dataset) -> dict[str, Any]:
    """What a card says of a prepared text: its size, and whether it is the user's own."""
    from niblick.data.corpus import corpora

    if dataset.manifest is None:
        return {}
    size = dataset.manifest.splits["train"].bytes
    return {"own": dataset.manifest.corpus not in corpora, "train_bytes": size}


def _calibration(outcome: Outcome) -> dict[str, int] | None:
    """How many sequences the codec's sensitivities rest on, of how many that were planned."""
    found = outcome.calibration
    return {"sequences": found.sequences, "planned": found.planned} if found else None


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def _check_packing(recipe: Recipe, options: Options) -> list[str]:
    """What to warn of before training; `CapacityError` where the cap would be exceeded by far.

    A run that is being resumed is let go on: its float weights can be packed with another codec.
    """
    from niblick.artifact.sizes import artifact_sizes
    from niblick.codecs import CODECS, rounding_specs
    from niblick.errors import CapacityError
    from niblick.plan import make_plan

    plan = make_plan(recipe.model)
    rounding_specs(recipe, plan, refuse=not options.resume)
    _, estimate = artifact_sizes(recipe, plan)
    limit = recipe.artifact.max_bytes
    if estimate <= limit:
        return []
    filling = [name for name in CODECS if CODECS[name].fills_cap]
    cure = "a smaller model"
    if recipe.artifact.codec not in filling:
        without = (
            " (with --set training.qat.enabled=false)"
            if recipe.training.qat.enabled is True
            else ""
        )
        cure = f"--set artifact.codec={filling[0]}, which fills the cap{without}"
    said = (
        f"the artifact, estimated at {estimate:,} bytes, exceeds the cap of {limit:,}; cure:"
        f" {cure}, or --max-bytes"
    )
    if estimate > _HOPELESS * limit and not options.resume:
        raise CapacityError(said)
    return [said]
