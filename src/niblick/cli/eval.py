"""`niblick eval`: score a model on a held-out split or any text, and write and print the Score."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from niblick.cli.imports import importing
from niblick.cli.models import say_shipped
from niblick.cli.options import JsonOption, ModelArgument, ThreadsOption, TokenizerOption
from niblick.errors import NiblickError

if TYPE_CHECKING:
    from niblick.facade import EngineName, Model
    from niblick.runtime import World
    from niblick.scoring.data import Target
    from niblick.scoring.options import EvaluationOptions
    from niblick.scoring.score import Score

DataOption = Annotated[
    Path | None,
    typer.Option(help="Folder of shards, or any text file or folder; else the recipe's corpus."),
]
SplitOption = Annotated[str, typer.Option(help="validation or test.")]
ModeOption = Annotated[
    str | None,
    typer.Option(help="chunked, sliding, streaming, document or leaky-ttt; else the recipe's."),
]
ContextOption = Annotated[int | None, typer.Option(help="Tokens of context; else the recipe's.")]
StrideOption = Annotated[int | None, typer.Option(help="Tokens scored per window, for sliding.")]
BatchOption = Annotated[int | None, typer.Option(help="Tokens of one forward pass, with torch.")]
PrecisionOption = Annotated[str, typer.Option(help="fp32, or bf16 with torch.")]
ProveOption = Annotated[
    bool, typer.Option("--prove", help="Prove causality and normalisation too.")
]
TttOption = Annotated[
    str | None, typer.Option(help="Score-first test-time training: sgd, adamw or lora.")
]
TttSetOption = Annotated[
    list[str] | None,
    typer.Option(help="key=value of the test-time training, such as lr=0.01 or freeze=tok_emb."),
]
EngineOption = Annotated[
    str | None, typer.Option(help="native, numpy or torch; else the fastest that can do it here.")
]
DeviceOption = Annotated[
    str | None, typer.Option(help="Where torch computes, such as cpu or cuda:0.")
]
OutOption = Annotated[Path | None, typer.Option(help="Where to write the score file.")]


@dataclass(frozen=True, kw_only=True)
class Request:
    """How to score: the engine, or None for the best one, and what only torch can do."""

    engine: str | None
    device: str | None
    threads: int | None
    prove: bool


def eval_command(
    model: ModelArgument,
    data: DataOption = None,
    split: SplitOption = "validation",
    mode: ModeOption = None,
    context: ContextOption = None,
    stride: StrideOption = None,
    batch_tokens: BatchOption = None,
    precision: PrecisionOption = "fp32",
    prove: ProveOption = False,
    ttt: TttOption = None,
    ttt_set: TttSetOption = None,
    engine: EngineOption = None,
    device: DeviceOption = None,
    threads: ThreadsOption = None,
    tokenizer: TokenizerOption = None,
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Score MODEL: every token of the text but the first, exactly once, in bits per byte."""
    with importing():
        from niblick import facade
        from niblick.runtime import read_world

    world = read_world()
    loaded = facade.load(model, tokenizer=tokenizer)
    if world.is_main:
        say_shipped(loaded)
    sizes = {"context": context, "stride": stride, "batch_tokens": batch_tokens}
    options = _options(loaded, ttt, ttt_set or [], mode=mode, precision=precision, **sizes)
    request = Request(engine=engine, device=device, threads=threads, prove=prove)
    with _progress(world, options) as report:
        if (chosen := _engine(request, options, world)) == "torch":
            score = _with_torch(loaded, (data, split), options, request, world, report)
        else:
            target = _target(loaded, data, split)
            settings = {name: getattr(options, name) for name in ("mode", "context", "stride")}
            score = loaded.score_target(
                target, engine=chosen, threads=threads, prove=prove, on_progress=report, **settings
            )
    if world.is_main:
        _report(loaded, score, out, as_json)


def _options(
    model: Model, ttt: str | None, settings: list[str], **changes: Any
) -> EvaluationOptions:
    """The recipe's evaluation section, with what the command line says on top."""
    from niblick.scoring.options import (
        METHODS,
        Adaptation,
        EvaluationOptions,
        LeakyTraining,
        OptionsError,
        parse_settings,
    )

    given = {key: value for key, value in changes.items() if value is not None}
    if ttt is not None:
        given["ttt"] = Adaptation(**{"method": ttt, **parse_settings(Adaptation, settings)})
        given.setdefault("mode", given["ttt"].mode)
    elif given.get("mode") == "leaky-ttt":
        given["leaky"] = LeakyTraining(**parse_settings(LeakyTraining, settings))
    elif settings:
        raise OptionsError(
            f"--ttt-set {settings[0]} needs --ttt with a method: {', '.join(METHODS)}"
        )
    return EvaluationOptions.from_recipe(model.recipe, **given)


def _engine(request: Request, options: EvaluationOptions, world: World) -> EngineName | None:
    """The engine asked for, where it can do what is asked; else the best; None: native or numpy."""
    from niblick.runtime import has_gpu, has_lab

    reasons = {
        "test-time training": options.ttt is not None or options.mode == "leaky-ttt",
        "--precision bf16": options.precision != "fp32",
        f"--device {request.device}": request.device not in (None, "cpu"),
        f"a launch of {world.size} processes": world.size > 1,
    }
    needed = next((what for what, holds in reasons.items() if holds), None)
    names: tuple[EngineName, ...] = ("native", "numpy", "torch")
    chosen = next((name for name in names if name == request.engine), None)
    if request.engine is not None and chosen is None:
        raise NiblickError(f"engine {request.engine!r} is unknown; accepted: {', '.join(names)}")
    if needed is not None and chosen in ("native", "numpy"):
        raise NiblickError(f"{needed} needs --engine torch, not {chosen}")
    if needed is not None or (chosen is None and has_gpu() and has_lab() and not request.device):
        return "torch"
    return chosen


def _with_torch(
    model: Model,
    text: tuple[Path | None, str],
    options: EvaluationOptions,
    request: Request,
    world: World,
    report: Callable[[float], None] | None,
) -> Score:
    """The lab's evaluation; with several processes the main one prepares the text first."""
    from niblick.runtime import choose_device, needs_lab, process_group

    with importing(), needs_lab("this evaluation"):
        from niblick.evaluation.evaluate import evaluate_target
        from niblick.evaluation.processes import in_turn

    device = request.device or choose_device(world)
    with process_group(world, device):
        target = in_turn(world, lambda: _target(model, *text))
        return evaluate_target(
            model.torch().to(device),
            target,
            options=options,
            world=world,
            artifact_sha256=model.sha256,
            prove=request.prove,
            on_progress=report,
        )


def _target(model: Model, data: Path | None, split: str) -> Target:
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


@contextmanager
def _progress(world: World, options: EvaluationOptions) -> Iterator[Callable[[float], None] | None]:
    """A bar on standard error while the main process scores, where somebody is looking."""
    if not world.is_main or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(f"scoring ({options.mode})", total=1.0)
        yield lambda done: bar.update(task, completed=done)


def _report(model: Model, score: Score, out: Path | None, as_json: bool) -> None:
    """Write the score, into `scores/` of the run that holds the model or beside it; print it."""
    from niblick.files import run_of
    from niblick.scoring.score_text import score_text, update_card

    run = run_of(model.path)
    if run is not None:
        path = out or run / "scores" / f"{score.name}.json"
    else:
        folder = Path() if model.is_shipped else model.path.parent
        path = out or folder / f"{model.path.stem}.{score.name}.score.json"
    score.write(path)
    if run is not None:
        update_card(run, score)
    print(json.dumps(score.summary(), allow_nan=False) if as_json else score_text(score))
    print(f"score written to {path}", file=sys.stderr)
