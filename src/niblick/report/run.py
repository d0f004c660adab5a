"""One run from a recipe to its scores: data, training, packing, and scoring of the float and the
packed model.

The same steps serve `niblick train` and the script of an exported submission; nothing here prints,
messages go through `say`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from niblick.artifact import ARTIFACT_FILE, open_file, save_checkpoint
from niblick.codecs import CODECS
from niblick.compression.calibration import Calibration, left_of_budget, make_calibration
from niblick.compression.packing import Packed, Stage, pack, stage_report
from niblick.compression.sensitivity import estimate_seconds
from niblick.data.dataset import Dataset, open_dataset
from niblick.data.prepare import resolve_dataset
from niblick.errors import DataError, StoppedError
from niblick.evaluation import EvaluationOptions, Score, evaluate
from niblick.evaluation.processes import in_turn
from niblick.model import build_model
from niblick.recipe import Recipe
from niblick.runtime import World, cache_folder, choose_device, process_group
from niblick.training import Progress, TrainResult, train
from niblick.training.run_folder import Row, claimed, claimed_new

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run measured; `packed` is None in processes other than the main one."""

    dataset: Dataset
    result: TrainResult
    packed: Packed | None
    floating: Score
    scored: Score
    calibration: Calibration | None


def find_dataset(recipe: Recipe, world: World, folder: Path | None = None) -> Dataset:
    """The shards in `folder`, else the recipe's dataset, prepared by the main process where it has
    to be.
    """

    def resolve() -> Dataset:
        if folder is not None:
            return open_dataset(folder)
        return resolve_dataset(
            recipe.data, vocab_size=recipe.model.vocab_size, cache=cache_folder()
        )

    return in_turn(world, resolve)


@contextmanager
def run_directory(world: World, folder: Path | None, *, name: str) -> Iterator[Path]:
    """`folder`, else a new runs/NAME-N, the same for every process of a launch; the main one is its
    only writer for the block.

    `TrainingError` where another process writes there.
    """
    with process_group(world, choose_device(world)), ExitStack() as held:

        def claim() -> Path:
            return held.enter_context(
                claimed_new(Path("runs"), name) if folder is None else claimed(folder)
            )

        chosen = in_turn(world, claim, main_only=True)
        if world.size > 1:
            import torch.distributed as dist

            told = [str(chosen)]
            dist.broadcast_object_list(told, 0)
            chosen = Path(told[0])
        yield chosen


def train_and_score(
    recipe: Recipe,
    folder: Path,
    *,
    world: World,
    resume: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
    on_stage: Stage | None = None,
    say: Say,
    track: Callable[[Row], None] | None = None,
) -> Outcome:
    """Train in `folder`, pack to artifact.nib, score validation from the float weights and from the
    file. `on_stage` follows what comes after training; `track` gets each row of metrics.jsonl.

    Raises `StoppedError` where a signal stopped the run (a checkpoint is written) or another
    process writes into `folder`, `CapacityError` where the artifact exceeds its cap (the float
    weights are kept).
    """
    device = choose_device(world)
    with process_group(world, device), run_directory(world, folder, name=recipe.name):
        dataset = find_dataset(recipe, world)
        for split in ("train", "validation"):
            dataset.shards(split)
        calibration, reserve = _calibration(recipe, dataset, device)
        result = train(
            recipe,
            dataset,
            folder,
            world=world,
            resume=resume,
            on_progress=on_progress,
            spent=calibration.seconds if calibration else 0.0,
            reserve=reserve,
            say=say,
            track=track,
        )
        if result.interrupted:
            raise StoppedError(
                f"stopped at step {result.steps:,}; continue with: niblick train --resume {folder}",
                result.interrupted,
            )
        if calibration:
            calibration = left_of_budget(recipe, calibration, result.seconds)
        packed = in_turn(
            world,
            lambda: _pack(recipe, dataset, folder, result, calibration, say, on_stage, device),
            main_only=True,
        )
        floating, scored = _scores(recipe, dataset, folder, result, world, on_stage)
        if world.is_main:
            floating.write(folder / "scores" / f"{floating.name}.json")
            scored.write(folder / "scores" / f"{scored.name}.json")
    return Outcome(
        dataset=dataset,
        result=result,
        packed=packed,
        floating=floating,
        scored=scored,
        calibration=calibration,
    )


def _calibration(recipe: Recipe, dataset: Dataset, device: str) -> tuple[Calibration | None, float]:
    """Batches for the recipe's codec, where it needs them, and the seconds to keep for them."""
    if not CODECS[recipe.artifact.codec].needs_calibration:
        return None, 0.0
    calibration = make_calibration(recipe, dataset)
    return calibration, estimate_seconds(recipe, calibration, device)


def _scores(
    recipe: Recipe,
    dataset: Dataset,
    folder: Path,
    result: TrainResult,
    world: World,
    on_stage: Stage | None,
) -> tuple[Score, Score]:
    """Validation from the float weights and from the packed file, by the recipe's settings."""
    options = EvaluationOptions.from_recipe(recipe)
    packed = open_file(folder / ARTIFACT_FILE)
    floating, scored = (
        evaluate(
            build_model(recipe, tensors).to(choose_device(world)),
            dataset,
            split="validation",
            options=options,
            world=world,
            artifact_sha256=sha256,
            on_progress=stage_report(on_stage, what),
        )
        for what, tensors, sha256 in (
            ("scoring the float weights", result.tensors, None),
            ("scoring the packed file", packed.tensors, packed.sha256),
        )
    )
    return floating, scored


def _pack(
    recipe: Recipe,
    dataset: Dataset,
    folder: Path,
    result: TrainResult,
    calibration: Calibration | None,
    say: Say,
    on_stage: Stage | None,
    device: str,
) -> Packed:
    weights = folder / "checkpoints" / "final.safetensors"
    meta = {"steps": result.steps, "tokens": result.tokens, "seconds": round(result.seconds, 3)}
    save_checkpoint(
        weights, tensors=result.tensors, recipe=recipe, tokenizer=dataset.tokenizer, meta=meta
    )
    say(f"float weights kept in {weights}; packing ...")
    try:
        return pack(
            result.tensors,
            recipe,
            dataset.tokenizer,
            folder / ARTIFACT_FILE,
            max_bytes=recipe.artifact.max_bytes,
            calibration=calibration,
            device=device,
            on_stage=on_stage,
        )
    except DataError as error:
        raise DataError(f"{error}; the float weights are kept in {str(weights)!r}") from None
