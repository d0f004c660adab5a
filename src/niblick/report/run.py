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
from typing import TypeVar

from niblick.artifact import ARTIFACT_FILE, build_model, open_model, save_checkpoint
from niblick.codecs.base import CODECS
from niblick.compression.calibration import Calibration
from niblick.compression.packing import Packed, pack
from niblick.compression.training_text import estimate_seconds, left_of_budget, make_calibration
from niblick.data.dataset import Dataset, open_dataset
from niblick.data.prepare import resolve_dataset
from niblick.errors import ArtifactError, NiblickError, StoppedError, TrainingError
from niblick.evaluation import EvaluationOptions, Score, evaluate
from niblick.recipe import Recipe
from niblick.runtime import World, cache_folder, choose_device, process_group
from niblick.training import Progress, TrainResult, train
from niblick.training.run_folder import claimed, claimed_new

T = TypeVar("T")
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
    say: Say,
) -> Outcome:
    """Train in `folder`, pack to artifact.nib, score validation from the float weights and from the
    file.

    Raises `StoppedError` where a signal stopped the run (a checkpoint is written) or another
    process writes into `folder`, `CapacityError` where the artifact exceeds its cap (the float
    weights are kept).
    """
    device = choose_device(world)
    with process_group(world, device), run_directory(world, folder, name=recipe.name):
        dataset = find_dataset(recipe, world)
        for split in ("train", "validation"):
            dataset.shards(split)
        calibration, reserve = None, 0.0
        if CODECS[recipe.artifact.codec].needs_calibration:
            calibration = make_calibration(recipe, dataset)
            reserve = estimate_seconds(recipe, calibration)
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
        )
        if result.interrupted:
            raise StoppedError(
                f"stopped at step {result.steps:,}; continue with: niblick train --resume {folder}",
                result.interrupted,
            )
        if calibration:
            calibration = left_of_budget(recipe, calibration, result.seconds)
        packed = in_turn(
            world, lambda: _pack(recipe, dataset, folder, result, calibration, say), main_only=True
        )
        options = EvaluationOptions.from_recipe(recipe)
        loaded = open_model(folder / ARTIFACT_FILE)
        models = ((build_model(recipe, result.tensors), None), (loaded.model, loaded.sha256))
        floating, scored = (
            evaluate(
                model.to(device),
                dataset,
                split="validation",
                options=options,
                world=world,
                artifact_sha256=sha256,
            )
            for model, sha256 in models
        )
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


def _pack(
    recipe: Recipe,
    dataset: Dataset,
    folder: Path,
    result: TrainResult,
    calibration: Calibration | None,
    say: Say,
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
        )
    except ArtifactError as error:
        raise ArtifactError(f"{error}; the float weights are kept in {str(weights)!r}") from None


def in_turn(world: World, work: Callable[[], T], *, main_only: bool = False) -> T:
    """`work` in the main process first, then in the others, which find it done (not at all with
    `main_only`).

    Where the main process fails, the others fail too instead of waiting for ever.
    """
    if world.size == 1:
        return work()
    import torch
    import torch.distributed as dist

    failure: NiblickError | None = None
    result: T | None = None
    if world.is_main:
        try:
            result = work()
        except NiblickError as error:
            failure = error
    flag = torch.tensor([int(failure is not None)], device=choose_device(world))
    dist.broadcast(flag, 0)
    if failure is not None:
        raise failure
    if flag.item():
        raise TrainingError("the main process could not go on; its message says why")
    return result if world.is_main or main_only else work()  # type: ignore[return-value]
