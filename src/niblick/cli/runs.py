"""One run from recipe to card, and several seeds of it: the order of work behind `niblick train`."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from niblick.errors import NiblickError, TrainingError

if TYPE_CHECKING:
    from niblick.data.dataset import Dataset
    from niblick.recipe import Recipe
    from niblick.report.card import Card
    from niblick.runtime import World
    from niblick.training import TrainResult


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a run reports: `as_json` keeps standard output for one JSON document."""

    resume: bool = False
    as_json: bool = False
    quiet: bool = False


def run_once(recipe: Recipe, folder: Path, options: Options) -> Card | None:
    """Train, pack, score and write the card in `folder`; None in processes other than the main one."""
    from niblick.cli.card import show_card
    from niblick.cli.progress import progress_bar
    from niblick.data.prepare import resolve_dataset
    from niblick.evaluation.processes import process_group
    from niblick.plan import make_plan
    from niblick.runtime import cache_folder, choose_device, read_world
    from niblick.training import train

    world = read_world()
    if world.is_main:
        _warn_of_size(recipe)
    with process_group(world, choose_device(world)):
        dataset = _in_turn(
            world, lambda: resolve_dataset(recipe.data, vocab_size=recipe.model.vocab_size, cache=cache_folder())
        )
        with progress_bar(make_plan(recipe.model), recipe, enabled=world.is_main) as report:
            result = train(recipe, dataset, folder, world=world, resume=options.resume, on_progress=report)
        if result.interrupted:
            raise TrainingError(f"stopped at step {result.steps:,}; continue with: niblick train --resume {folder}")
        card = _finish(recipe, dataset, folder, result, world)
    if card is not None and not options.quiet:
        show_card(card, options.as_json)
    return card


def run_seeds(recipe: Recipe, folder: Path, count: int, options: Options) -> None:
    """Run `count` seeds into seed-N/ folders, one after another, and summarise their cards.

    A seed whose card is already there is kept, and one that was begun is resumed.
    """
    from niblick.cli.card import show_card
    from niblick.report.seeds import summarise_seeds, write_seeds

    cards = []
    for seed in range(recipe.seed, recipe.seed + count):
        place, one = folder / f"seed-{seed}", recipe.model_copy(update={"seed": seed})
        done = place / "card.json"
        if done.is_file():
            cards.append(json.loads(done.read_text("utf-8")))
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


def _finish(recipe: Recipe, dataset: Dataset, folder: Path, result: TrainResult, world: World) -> Card | None:
    """From the final weights to the card: checkpoint, artifact, both scores, baselines."""
    from niblick.artifact import ARTIFACT_FILE, build_model, open_model
    from niblick.evaluation import EvaluationOptions, evaluate
    from niblick.runtime import choose_device

    packed = _pack(recipe, dataset, folder, result) if world.is_main else None
    _wait(world)
    options, device = EvaluationOptions.from_recipe(recipe), choose_device(world)
    loaded = open_model(folder / ARTIFACT_FILE)
    scores = {}
    for name, model, sha256 in (
        ("float", build_model(recipe, result.tensors), None), ("packed", loaded.model, loaded.sha256),
    ):
        scores[name] = evaluate(
            model.to(device), dataset, split="validation", options=options, world=world, artifact_sha256=sha256
        )
    if packed is None:
        return None
    for name, score in scores.items():
        score.write(folder / "scores" / f"{score.label}-{'artifact' if name == 'packed' else 'float'}.json")
    return _card(recipe, dataset, folder, result, packed, scores)


def _pack(recipe: Recipe, dataset: Dataset, folder: Path, result: TrainResult) -> Any:
    from niblick.artifact import ARTIFACT_FILE, pack, save_checkpoint
    from niblick.cli.calibrate import calibration_batches
    from niblick.compression.calibration import Calibration

    meta = {"steps": result.steps, "tokens": result.tokens, "seconds": round(result.seconds, 3)}
    weights = folder / "checkpoints" / "final.safetensors"
    save_checkpoint(
        weights, tensors=result.tensors, recipe=recipe,
        tokenizer=dataset.tokenizer, meta=meta,
    )
    print(f"float weights kept in {weights}; packing ...", file=sys.stderr)
    return pack(
        result.tensors, recipe, dataset.tokenizer, folder / ARTIFACT_FILE, max_bytes=recipe.artifact.max_bytes,
        calibration=Calibration(calibration_batches(recipe, dataset)),
    )


def _card(
    recipe: Recipe, dataset: Dataset, folder: Path, result: TrainResult, packed: Any, scores: dict[str, Any]
) -> Card:
    from niblick.plan import make_plan
    from niblick.report.baselines import compressor_baselines, join_documents
    from niblick.report.card import make_card, write_card
    from niblick.runtime import cache_folder, describe_environment

    baselines = {}
    if dataset.name == "wiki-vital":
        print("measuring general compressors on the same text ...", file=sys.stderr)
        texts = [join_documents(list(dataset.texts(split))) for split in ("train", "validation")]
        baselines = compressor_baselines(texts[0], texts[1], cache_folder())
    tokenizer = dataset.tokenizer
    rounding = "shares the codec's grid" if recipe.training.qat.enabled else None
    card = make_card(
        recipe, make_plan(recipe.model), floating=scores["float"], packed=scores["packed"],
        artifact={"bytes": packed.size, "ledger": packed.ledger.to_json(), "choice": packed.choice},
        training={
            "seconds": result.seconds + packed.calibration_seconds, "tokens": result.tokens, "steps": result.steps,
            "passes": result.tokens / max(dataset.token_count("train"), 1), "qat": rounding,
        },
        data={"corpus": dataset.name, "attribution": dataset.attribution, "tokenizer": tokenizer.name,
              "lossless": tokenizer.lossless, "data_sha256": scores["packed"].data_sha256},
        baselines=baselines, environment=describe_environment(),
    )
    write_card(card, folder)
    return card


def _warn_of_size(recipe: Recipe) -> None:
    """Say before training when the artifact is expected to exceed its cap."""
    from niblick.plan import make_plan
    from niblick.plan.sizes import artifact_sizes

    _, estimate = artifact_sizes(recipe, make_plan(recipe.model))
    limit = recipe.artifact.max_bytes
    if estimate > limit:
        print(
            f"warning: the artifact is estimated at {estimate:,} bytes, {estimate - limit:,} over the cap of {limit:,}",
            file=sys.stderr,
        )


def _in_turn(world: World, work: Any) -> Any:
    """The main process first (it may prepare and write), then the others, which find the work done."""
    if world.size == 1:
        return work()
    result, failure = None, None
    if world.is_main:
        try:
            result = work()
        except NiblickError as error:
            failure = error
    _wait(world)
    if failure is not None:
        raise failure
    return result if world.is_main else work()


def _wait(world: World) -> None:
    if world.size > 1:
        import torch.distributed as dist

        dist.barrier()
