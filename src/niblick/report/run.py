"""One run from a recipe to its scores: data, training, packing, and scoring of the float and the
packed model.

The same steps serve `niblick train` and the script of an exported submission; nothing here prints,
messages go through `say`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from niblick.artifact.checkpoint import FINAL_FILE, save_checkpoint
from niblick.artifact.load import ARTIFACT_FILE, open_file
from niblick.codecs import CODECS
from niblick.compression.calibration import Calibration, left_of_budget, make_calibration
from niblick.compression.packing import Packed, Stage, pack, stage_report
from niblick.compression.sensitivity import estimate_seconds
from niblick.data.dataset import Dataset, open_dataset
from niblick.data.prepare import resolve_dataset
from niblick.errors import DataError, StoppedError, TrainingError
from niblick.evaluation import EvaluationOptions, Score, evaluate
from niblick.model import build_model
from niblick.recipe import Recipe
from niblick.runtime import World, cache_folder, choose_device, is_orphan, process_group
from niblick.training import Progress, TrainResult, train
from niblick.training.distributed import in_turn
from niblick.training.run_folder import Row, claimed, claimed_new

Say = Callable[[str], None]
_MOMENT = 2.0  # seconds


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run measured; `packed` is None in processes other than the main one.

    Where nothing is packed, `scored` is the score of the float weights.
    """

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
def told_if_slow(say: Say, message: str) -> Iterator[None]:
    """Says what the block is at where it takes more than a moment."""
    timer = threading.Timer(_MOMENT, say, (message,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def run_directory(world: World, folder: Path | None, *, name: str) -> Iterator[Path]:
    """`folder`, else a new runs/NAME-N, the same for every process of a launch; the main one is its
    only writer for the block.

    `TrainingError` where another process writes there.
    """
    with process_group(world, choose_device(world)), ExitStack() as held:

        def claim() -> Path:
            if is_orphan():  # who starts it again need not find the folder in use
                raise TrainingError("what started this run is gone")
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
    packs: bool = True,
    on_progress: Callable[[Progress], None] | None = None,
    on_stage: Stage | None = None,
    say: Say,
    track: Callable[[Row], None] | None = None,
) -> Outcome:
    """Train in `folder`, pack to artifact.nib, score validation from the float weights and from the
    file. `on_stage` follows what comes after training; `track` gets each row of metrics.jsonl.
    Without `packs` the run ends with the score of the float weights.

    Raises `StoppedError` where a signal stopped the run (a checkpoint is written) or another
    process writes into `folder`, `CapacityError` where the artifact exceeds its cap (the float
    weights are kept).
    """
    device = choose_device(world)
    with process_group(world, device), run_directory(world, folder, name=recipe.name):
        dataset = _prepared(recipe, world, say)
        calibration, reserve = _calibration(recipe, dataset, device) if packs else (None, 0.0)
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
            lambda: _keep(
                recipe, dataset, folder, result, calibration, packs, say, on_stage, device
            ),
            main_only=True,
        )
        score = _Scoring(recipe, dataset, folder, world, on_stage)
        floating = score("scoring the float weights", result.tensors)
        return Outcome(
            dataset=dataset,
            result=result,
            packed=packed,
            floating=floating,
            scored=score("scoring the packed file") if packs else floating,
            calibration=calibration,
        )


def _prepared(recipe: Recipe, world: World, say: Say) -> Dataset:
    """The recipe's dataset, with both splits that a run needs; refuses what could not be scored."""
    options = EvaluationOptions.from_recipe(recipe)
    options.check_sizes(options.context or recipe.model.context)
    tell = say if world.is_main else lambda message: None
    with told_if_slow(tell, "preparing the text, once: a tokenizer and shards ..."):
        dataset = find_dataset(recipe, world)
    for split in ("train", "validation"):
        dataset.shards(split)
    return dataset


def _calibration(recipe: Recipe, dataset: Dataset, device: str) -> tuple[Calibration | None, float]:
    """Batches for the recipe's codec, where it needs them, and the seconds to keep for them."""
    if not CODECS[recipe.artifact.codec].needs_calibration:
        return None, 0.0
    calibration = make_calibration(recipe, dataset)
    return calibration, estimate_seconds(recipe, calibration, device)


@dataclass(frozen=True)
class _Scoring:
    """Scores validation by the recipe's settings, and keeps the score's file."""

    recipe: Recipe
    dataset: Dataset
    folder: Path
    world: World
    on_stage: Stage | None

    def __call__(self, what: str, tensors: Mapping[str, Tensor] | None = None) -> Score:
        """The score of these float weights, else of the packed file."""
        packed = open_file(self.folder / ARTIFACT_FILE) if tensors is None else None
        score = evaluate(
            build_model(self.recipe, packed.tensors if packed else tensors or {}).to(
                choose_device(self.world)
            ),
            self.dataset,
            split="validation",
            options=EvaluationOptions.from_recipe(self.recipe),
            world=self.world,
            artifact_sha256=packed.sha256 if packed else None,
            on_progress=stage_report(self.on_stage, what),
        )
        if self.world.is_main:
            score.write(self.folder / "scores" / f"{score.name}.json")
        return score


def _keep(
    recipe: Recipe,
    dataset: Dataset,
    folder: Path,
    result: TrainResult,
    calibration: Calibration | None,
    packs: bool,
    say: Say,
    on_stage: Stage | None,
    device: str,
) -> Packed | None:
    """Write the float weights, and the packed file where `packs`."""
    weights = folder / "checkpoints" / FINAL_FILE
    meta = {"steps": result.steps, "tokens": result.tokens, "seconds": round(result.seconds, 3)}
    save_checkpoint(
        weights, tensors=result.tensors, recipe=recipe, tokenizer=dataset.tokenizer, meta=meta
    )
    if not packs:
        return None
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
