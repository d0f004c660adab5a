"""`niblick.train`, `niblick.pack` and `niblick.evaluate`: what the commands do, as Python calls.

They take paths and names as the commands do, and raise `niblick.errors.NiblickError`, of one line,
where a command ends with exit code 1 or 2. Nothing is printed: `say` is given what a command says
on standard error, `on_progress` and `on_stage` what it draws. Importing this module imports no
torch; a function that needs the lab says how to install it where it is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, fields
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

from niblick.errors import ArtifactError, DataError, NiblickError
from niblick.extras import needs
from niblick.facade import EngineName, Model
from niblick.facade import load as load_model
from niblick.runtime import has_gpu, has_lab, read_world, settle_threads

if TYPE_CHECKING:
    from niblick.artifact.checkpoint import Checkpoint
    from niblick.compression import Calibration
    from niblick.compression.packing import Packed
    from niblick.recipe import Recipe
    from niblick.runtime import World
    from niblick.scoring.card import Card
    from niblick.scoring.data import Target
    from niblick.scoring.options import EvaluationOptions
    from niblick.scoring.score import Score
    from niblick.training import Progress

Say = Callable[[str], None]
Stage = Callable[[str, float], None]  # what is being done, and the share of it that is done


@dataclass(frozen=True)
class Run:
    """A finished run: its directory and its card, as card.json has it."""

    folder: Path
    card: Card = field(repr=False)

    @property
    def artifact(self) -> Path:
        """The packed model."""
        return self.folder / "artifact.nib"

    @property
    def bpb(self) -> float:
        """Bits per byte of the packed model on the validation split."""
        return float(self.card["packed_bpb"])

    def load(self) -> Model:
        """The packed model, ready to use."""
        return load_model(self.artifact)

    def __repr__(self) -> str:
        return (
            f"<niblick.Run {str(self.folder)!r}: {self.bpb:.4f} bits per byte in"
            f" {self.card['artifact_bytes']:,} bytes>"
        )

    def _repr_markdown_(self) -> str:
        """The card, where a notebook shows the run."""
        from niblick.scoring.card import card_markdown

        return card_markdown(self.card)


def train(
    recipe: str | Path | Recipe | None = None,
    *,
    init_from: str | Path | Run | None = None,
    data: str | Path | None = None,
    out: str | Path | None = None,
    duration: str | None = None,
    max_bytes: int | None = None,
    seed: int | None = None,
    settings: Sequence[str] = (),
    tokenizer: str | Path | None = None,
    device: str | None = None,
    say: Say | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    on_stage: Stage | None = None,
) -> Run:
    """Train a recipe, pack it under its byte cap, score it from the file, write its card.

    `recipe` is a shipped recipe's name, a TOML file or a `Recipe`; `data` a folder or file of your
    own text, or prepared shards, to which vocabulary, width and duration are fitted where neither
    you nor a recipe file decides them. Under a smaller cap than its own a shipped recipe gets a
    smaller model, where no setting is of the model. `init_from` is a model (a file, a run, a
    shipped model's name) whose weights, shape and tokenizer the run starts with; `recipe` may then
    be left out: it is the model's own. `out` is the run directory, else a new one
    under runs/. `settings` are like `["model.dim=96"]`; `device` is as `--device`, CUDA where there
    is one unless given. One process alone: torchrun starts the command. Raises `StoppedError` where
    a signal ends it; `niblick train --resume` goes on.
    """
    with needs("niblick.train"):
        from niblick.report import run
        from niblick.report.finish import check_packing, write_run_card
        from niblick.report.own_text import fit_data
        from niblick.report.shapes import fit_named
        from niblick.report.start import start
    tell, world = say or (lambda message: None), read_world(device)
    if world.size > 1:
        raise NiblickError("niblick.train is for one process; start several with torchrun")
    model = None if init_from is None else _path(init_from)
    named: dict[str, Any] = {"duration": duration, "max_bytes": max_bytes, "seed": seed}
    begun = start(recipe, settings, init_from=model, tokenizer=tokenizer, **named)
    if tokenizer is not None and data is None:
        raise NiblickError("tokenizer goes with data; else set data.tokenizer")
    chosen, place = begun.recipe, None if out is None else Path(out)
    with run.run_directory(world, place, name=chosen.name) as folder:
        if (folder / "recipe.toml").exists():
            raise NiblickError(f"{str(folder)!r} holds a run; choose another folder")
        if data is not None:
            fitted = fit_data(chosen, data, folder, given=begun.given, tokenizer=begun.tokenizer)
            chosen, said = fitted.recipe, list(fitted.said)
        else:
            chosen, said = fit_named(begun.shaped_as, chosen, settings)
        for line in (*said, *(f"warning: {warning}" for warning in check_packing(chosen))):
            tell(line)
        outcome = run.train_and_score(
            chosen, folder, world=world, on_progress=on_progress, on_stage=on_stage, say=tell
        )
        return Run(folder, write_run_card(chosen, folder, outcome, tell))


def pack(
    model: str | Path | Run,
    out: str | Path = "artifact.nib",
    *,
    max_bytes: int | None = None,
    target_tax: float | None = None,
    codec: str | None = None,
    code_bytes: int = 0,
    data: str | Path | None = None,
    self_calibrate: bool = False,
    device: str | None = None,
    on_stage: Stage | None = None,
) -> Packed:
    """Pack a checkpoint or a run's float weights into the artifact `out`, under a cap in bytes.

    `max_bytes` and `codec` are the recipe's unless given; `target_tax` asks for the smallest file
    that loses at most so many bits per byte. A codec that calibrates reads training text: the
    recipe's, the shards in `data`, or with `self_calibrate` text that the model writes itself, on
    `device`. Raises `CapacityError` where the cap is exceeded; nothing is written then.
    """
    with needs("niblick.pack"):
        from niblick.artifact.checkpoint import find_weights, read_checkpoint
        from niblick.codecs import CODECS
        from niblick.compression import packing
        from niblick.files import run_of
        from niblick.runtime import choose_device
        from niblick.training.run_folder import claimed

    place = choose_device(read_world(device))
    source, target = _path(model), Path(out)
    _check_file(target, max_bytes, code_bytes)
    if not source.exists():
        raise ArtifactError(f"no checkpoint at {str(source)!r}; give a checkpoint or a run folder")
    inside = source / "checkpoints"
    checkpoint = read_checkpoint(find_weights(inside if inside.is_dir() else source))
    name = codec or checkpoint.recipe.artifact.codec
    _check_calibration(name, CODECS[name].needs_calibration, data, self_calibrate, target_tax)
    own = CODECS[name].needs_calibration and not self_calibrate
    run = run_of(target.absolute())
    with nullcontext() if run is None else claimed(run):
        return packing.pack(
            checkpoint.tensors,
            checkpoint.recipe,
            checkpoint.tokenizer,
            target,
            max_bytes=max_bytes if max_bytes is not None else checkpoint.recipe.artifact.max_bytes,
            codec=name,
            calibration=_calibration(checkpoint, data) if own else None,
            target_tax=target_tax,
            extra_bytes=code_bytes,
            meta=checkpoint.meta,
            device=place,
            on_stage=on_stage,
        )


def _check_file(target: Path, max_bytes: int | None, code_bytes: int) -> None:
    """Refuse sizes that are none, and the artifact that a run's card and scores are of."""
    from niblick.artifact.load import ARTIFACT_FILE

    for said, value in (("--max-bytes", max_bytes), ("--code-bytes", code_bytes)):
        if value is not None and (not isinstance(value, int) or value < 0):
            raise NiblickError(f"{said} {value!r} is no number of bytes from 0 on")
    if target.name == ARTIFACT_FILE and (target.parent / "card.json").exists():
        raise ArtifactError(
            f"{str(target)!r} is what the card and the scores of its run are of; give another --out"
        )


def _path(model: str | Path | Run | Model) -> Path:
    if isinstance(model, Run):
        return model.folder
    return model.path if isinstance(model, Model) else Path(model)


def _check_calibration(
    codec: str,
    calibrates: bool,
    data: str | Path | None,
    self_calibrate: bool,
    target_tax: float | None,
) -> None:
    """Refuse what would have no effect, and a loss that no file can have."""
    given = {
        "--data": data is not None,
        "--self-calibrate": self_calibrate,
        "--target-tax": target_tax is not None,
    }
    for option, present in given.items():
        if present and not calibrates:
            raise NiblickError(f"{option} has no effect with codec {codec!r}: it measures no loss")
    if target_tax is not None and not 0 <= target_tax < inf:
        raise NiblickError(f"--target-tax {target_tax} is no number of bits per byte from 0 on")
    if data is not None and self_calibrate:
        raise NiblickError("give --data or --self-calibrate, not both")
    if target_tax is not None and self_calibrate:
        raise NiblickError("--target-tax is measured on text, so it excludes --self-calibrate")


def _calibration(checkpoint: Checkpoint, data: str | Path | None) -> Calibration:
    """Training batches drawn as `train` draws them, with the bytes that a token stands for."""
    from niblick.compression.calibration import make_calibration
    from niblick.report.run import find_dataset

    recipe = checkpoint.recipe
    try:
        dataset = find_dataset(recipe, read_world(), None if data is None else Path(data))
    except DataError as error:
        raise DataError(
            f"{error}; --data takes prepared shards (niblick data prepare), or pass"
            " --self-calibrate"
        ) from None
    if checkpoint.tokenizer is not None and checkpoint.tokenizer.sha256 != dataset.tokenizer.sha256:
        raise DataError(
            f"the checkpoint's tokenizer {checkpoint.tokenizer.name} is not the data's"
            f" {dataset.tokenizer.name}; name its own data with --data, or pass --self-calibrate"
        )
    return make_calibration(recipe, dataset)


def evaluate(
    model: str | Path | Model | Run,
    data: str | Path | None = None,
    *,
    split: str = "validation",
    engine: EngineName | None = None,
    device: str | None = None,
    threads: int | None = None,
    prove: bool = False,
    on_progress: Callable[[float], None] | None = None,
    **options: Any,
) -> Score:
    """The Score of a model on a held-out split: every token but the first, exactly once.

    `data` is a folder of shards, or any text file or folder, else the recipe's corpus. `options`
    are fields of `niblick.scoring.options.EvaluationOptions` (`mode`, `context`, `stride`, `ttt`,
    ...), the recipe's unless given; `ttt` is an `Adaptation` or its method's name. It runs without
    torch but for `ttt`, `precision="bf16"`, a GPU and `engine="torch"`. The score is returned, not
    written: `score.write(path)`.
    """
    from niblick.scoring.options import Adaptation, EvaluationOptions, OptionsError

    known = {each.name for each in fields(EvaluationOptions)}
    if unknown := sorted(set(options) - known):
        raise OptionsError(
            f"unknown option {unknown[0]!r}; accepted: {', '.join(sorted(known))}, and those of"
            " niblick.evaluate"
        )
    opened = load_model(model.artifact) if isinstance(model, Run) else model
    loaded = opened if isinstance(opened, Model) else load_model(opened)
    if isinstance(options.get("ttt"), str):
        ttt = Adaptation(method=options["ttt"])
        options = {"mode": ttt.mode, **options, "ttt": ttt}
    chosen, world = EvaluationOptions.from_recipe(loaded.recipe, **options), read_world(device)
    if "stride" in options and chosen.mode not in ("sliding", "leaky-ttt"):
        raise OptionsError(f"--stride goes with --mode sliding, not {chosen.mode}")
    place = None if data is None else Path(data)
    if _engine(engine, device, chosen, world) == "torch":
        if threads is not None:
            with needs("this evaluation"):
                settle_threads(threads)
        return _with_torch(
            loaded, (place, split), chosen, world=world, prove=prove, on_progress=on_progress
        )
    if "batch_tokens" in options:
        raise OptionsError("--batch-tokens goes with --engine torch: other engines have no batches")
    settings = {name: getattr(chosen, name) for name in ("mode", "context", "stride")}
    return loaded.score_target(
        find_target(loaded, place, split),
        engine=engine,
        threads=threads,
        prove=prove,
        on_progress=on_progress,
        **settings,
    )


def _engine(
    asked: str | None, device: str | None, options: EvaluationOptions, world: World
) -> EngineName | None:
    """The engine asked for, where it can do what is asked; else the best; None: native or numpy."""
    reasons = {
        "test-time training": options.ttt is not None or options.mode == "leaky-ttt",
        "--precision bf16": options.precision == "bf16",
        f"--device {device}": device not in (None, "auto", "cpu"),
        f"a launch of {world.size} processes": world.size > 1,
    }
    needed = next((what for what, holds in reasons.items() if holds), None)
    names: tuple[EngineName, ...] = ("native", "numpy", "torch")
    chosen = next((name for name in names if name == asked), None)
    if asked is not None and chosen is None:
        raise NiblickError(f"engine {asked!r} is unknown; accepted: {', '.join(names)}")
    if needed is not None and chosen in ("native", "numpy"):
        raise NiblickError(f"{needed} needs --engine torch, not {chosen}")
    if needed is not None or (chosen is None and has_gpu() and has_lab() and device != "cpu"):
        return "torch"
    return chosen


def _with_torch(
    model: Model,
    text: tuple[Path | None, str],
    options: EvaluationOptions,
    *,
    world: World,
    prove: bool,
    on_progress: Callable[[float], None] | None,
) -> Score:
    """The lab's evaluation; with several processes the main one prepares the text first."""
    from niblick.runtime import choose_device, process_group

    with needs("this evaluation"):
        from niblick.evaluation.evaluate import evaluate_target
        from niblick.training.distributed import in_turn

    place = choose_device(world)
    with process_group(world, place):
        target = in_turn(world, lambda: find_target(model, *text))
        return evaluate_target(
            model.torch(gradients=options.ttt is not None or options.mode == "leaky-ttt").to(place),
            target,
            options=options,
            world=world,
            artifact_sha256=model.sha256,
            prove=prove,
            on_progress=on_progress,
        )


def find_target(model: Model, data: Path | None, split: str) -> Target:
    """The text to score: a split of shards, or any text in the model's own tokens."""
    from niblick.data.dataset import find_files, open_dataset
    from niblick.data.manifest import load_manifest
    from niblick.data.prepare import resolve_dataset
    from niblick.data.textfiles import holds_texts, read_texts
    from niblick.runtime import cache_folder
    from niblick.scoring.data import check_tokenizer, load_target, text_target

    recipe = model.recipe
    sizes = {"vocab_size": recipe.model.vocab_size, "bos_id": recipe.model.bos_id}
    shards = data is None or (data.is_dir() and (load_manifest(data) or find_files(data)))
    if data is not None and not shards and data.exists() and holds_texts(data):
        if split != "validation":
            raise NiblickError(f"--split {split} goes with shards: {str(data)!r} is one text")
        return text_target(data.name, read_texts(data), model.tokenizer, **sizes)
    if data is not None:
        dataset = open_dataset(data)
    else:
        dataset = resolve_dataset(
            recipe.data, vocab_size=recipe.model.vocab_size, cache=cache_folder()
        )
    if model.has_tokenizer:
        check_tokenizer(model.tokenizer, dataset)
    return load_target(dataset, split, **sizes)
