"""What the script of an exported submission runs: train, pack and score as the run did, or score
the artifact alone.

It is bundled, with the modules it needs, into one `train_gpt.py`; messages go to the `say` it is
given.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from niblick.artifact.load import ARTIFACT_FILE, open_file
from niblick.errors import NiblickError
from niblick.evaluation import EvaluationOptions, evaluate
from niblick.model import build_model
from niblick.recipe import Recipe, recipe_from_dict
from niblick.report.run import find_dataset, train_and_score
from niblick.runtime import World, choose_device, process_group, read_world
from niblick.scoring.data import check_tokenizer
from niblick.training import Progress

Say = Callable[[str], None]


def main(settings: dict[str, Any], arguments: Sequence[str], say: Say) -> int:
    """Run with the recipe `settings` and command-line `arguments`; the exit code. One JSON line
    ends the output.
    """
    parser = argparse.ArgumentParser(description="Train, pack and score this submission.")
    parser.add_argument(
        "--data", help="folder of shards (*_train_*.bin, *_val_*.bin); else the recipe's own corpus"
    )
    parser.add_argument("--out", default="run", help="run directory")
    parser.add_argument("--duration", help='training budget, such as "600s" or "20 steps"')
    parser.add_argument(
        "--eval-only", action="store_true", help="score the artifact in this folder"
    )
    options = parser.parse_args(list(arguments))
    try:
        recipe = _recipe(settings, options)
        world = read_world()
        result = (
            _score(recipe, world)
            if options.eval_only
            else _train(recipe, Path(options.out), world, say)
        )
    except NiblickError as error:
        say("error: " + " ".join(str(error).split()))
        return error.exit_code
    if world.is_main:
        say(json.dumps(result))
    return 0


def _recipe(settings: dict[str, Any], options: argparse.Namespace) -> Recipe:
    values = json.loads(json.dumps(settings))
    if options.data:
        values["data"]["corpus"] = options.data
    if options.duration:
        values["training"]["duration"] = options.duration
    return recipe_from_dict(values, origin="this submission")


def _score(recipe: Recipe, world: World) -> dict[str, Any]:
    """The Score of the artifact, from the file alone."""
    loaded = open_file(ARTIFACT_FILE)
    device = choose_device(world)
    with process_group(world, device):
        dataset = find_dataset(recipe, world)
        check_tokenizer(loaded.tokenizer, dataset)
        score = evaluate(
            build_model(loaded.recipe, loaded.tensors).to(device),
            dataset,
            split="validation",
            options=EvaluationOptions.from_recipe(recipe),
            world=world,
            artifact_sha256=loaded.sha256,
        )
    return score.summary()


def _train(recipe: Recipe, folder: Path, world: World, say: Say) -> dict[str, Any]:
    def report(progress: Progress) -> None:
        validation = (
            f" val_bpb:{progress.validation_bpb:.6f}" if progress.validation_bpb is not None else ""
        )
        say(
            f"step:{progress.step} train_loss:{progress.loss:.6f}{validation}"
            f" train_time:{progress.seconds * 1000:.0f}ms"
        )

    outcome = train_and_score(recipe, folder, world=world, on_progress=report, say=say)
    size = outcome.packed.size if outcome.packed else None
    return {"artifact_bytes": size, "float_bpb": outcome.floating.bpb, **outcome.scored.summary()}
