"""`niblick eval`: score a model on a held-out split, and write and print the Score."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from niblick.cli.imports import importing

if TYPE_CHECKING:
    from niblick.artifact import Opened
    from niblick.evaluation import EvaluationOptions, Score
    from niblick.recipe import Recipe
    from niblick.runtime import World


def eval_command(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="An artifact, a checkpoint or a run directory.")
    ],
    data: Annotated[
        Path | None, typer.Option(help="Folder of shards; else the recipe's own corpus.")
    ] = None,
    split: Annotated[str, typer.Option(help="validation or test.")] = "validation",
    mode: Annotated[
        str | None,
        typer.Option(help="chunked, sliding, streaming, document or leaky-ttt; else the recipe's."),
    ] = None,
    context: Annotated[
        int | None, typer.Option(help="Tokens of context; else the recipe's.")
    ] = None,
    stride: Annotated[
        int | None, typer.Option(help="Tokens scored per window, for sliding.")
    ] = None,
    batch_tokens: Annotated[int | None, typer.Option(help="Tokens of one forward pass.")] = None,
    precision: Annotated[str, typer.Option(help="fp32 or bf16.")] = "fp32",
    prove: Annotated[
        bool, typer.Option("--prove", help="Prove causality and normalisation too.")
    ] = False,
    ttt: Annotated[
        str | None, typer.Option(help="Score-first test-time training: sgd, adamw or lora.")
    ] = None,
    ttt_set: Annotated[
        list[str] | None,
        typer.Option(
            help="key=value of the test-time training, such as lr=0.01 or freeze=tok_emb."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Where to write the score file.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the score as one JSON document.")
    ] = False,
) -> None:
    """Score MODEL: every token of the split but the first, exactly once, in bits per byte."""
    with importing():
        from niblick.artifact import open_file
        from niblick.evaluation import evaluate
        from niblick.model import build_model
        from niblick.report.run import find_dataset
        from niblick.runtime import choose_device, process_group, read_world
        from niblick.scoring.data import check_tokenizer

    world = read_world()
    loaded = open_file(model)
    options = _options(
        loaded.recipe,
        ttt,
        ttt_set or [],
        mode=mode,
        context=context,
        stride=stride,
        batch_tokens=batch_tokens,
        precision=precision,
    )
    device = choose_device(world)
    with process_group(world, device), _progress(world, options) as report:
        dataset = find_dataset(loaded.recipe, world, data)
        check_tokenizer(loaded.tokenizer, dataset)
        score = evaluate(
            build_model(loaded.recipe, loaded.tensors).to(device),
            dataset,
            split=split,
            options=options,
            world=world,
            artifact_sha256=loaded.sha256,
            prove=prove,
            on_progress=report,
        )
    if world.is_main:
        _report(loaded, score, out, as_json)


def _options(
    recipe: Recipe, ttt: str | None, settings: list[str], **changes: Any
) -> EvaluationOptions:
    """The recipe's evaluation section, with what the command line says on top."""
    from niblick.evaluation import Adaptation, EvaluationOptions, LeakyTraining
    from niblick.scoring.options import METHODS, OptionsError, parse_settings

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
    return EvaluationOptions.from_recipe(recipe, **given)


@contextmanager
def _progress(world: World, options: EvaluationOptions) -> Iterator[Callable[[float], None] | None]:
    """A bar on standard error while the main process scores, where somebody is looking."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    if not world.is_main or not console.is_terminal:
        yield None
        return
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task(f"scoring ({options.mode})", total=1.0)
        yield lambda share: bar.update(task, completed=share)


def _report(loaded: Opened, score: Score, out: Path | None, as_json: bool) -> None:
    """Write the score (into `scores/` of the run that holds the model, else beside the model) and
    print it.
    """
    import json

    from niblick.scoring.score_text import score_text, update_card
    from niblick.training.run_folder import run_of

    run = run_of(loaded.path)
    if run is not None:
        path = out or run / "scores" / f"{score.name}.json"
    else:
        path = out or loaded.path.with_name(f"{loaded.path.stem}.{score.name}.score.json")
    score.write(path)
    if run is not None:
        update_card(run, score)
    print(json.dumps(score.summary(), allow_nan=False) if as_json else score_text(score))
    print(f"score written to {path}", file=sys.stderr)
