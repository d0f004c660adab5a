"""`niblick eval`: score a model on a held-out split or any text, and write and print the Score."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from niblick.cli.completion import words
from niblick.cli.imports import importing
from niblick.cli.models import say_shipped
from niblick.cli.options import (
    DeviceOption,
    JsonOption,
    ModelArgument,
    ThreadsOption,
    TokenizerOption,
)
from niblick.errors import ScoreError

if TYPE_CHECKING:
    from niblick.facade import Model
    from niblick.scoring.score import Score

DataOption = Annotated[
    Path | None,
    typer.Option(help="Folder of shards, or any text file or folder; else the recipe's corpus."),
]
SplitOption = Annotated[
    str, typer.Option(help="validation or test.", autocompletion=words("validation", "test"))
]
ModeOption = Annotated[
    str | None,
    typer.Option(
        help="chunked, sliding, streaming, document or leaky-ttt; else the recipe's.",
        autocompletion=words("chunked", "sliding", "streaming", "document", "leaky-ttt"),
    ),
]
ContextOption = Annotated[int | None, typer.Option(help="Tokens of context; else the recipe's.")]
StrideOption = Annotated[int | None, typer.Option(help="Tokens scored per window, for sliding.")]
BatchOption = Annotated[int | None, typer.Option(help="Tokens of one forward pass, with torch.")]
PrecisionOption = Annotated[
    str | None, typer.Option(help="fp32 or bf16, which needs torch; else bf16 on a GPU alone.")
]
ProveOption = Annotated[
    bool, typer.Option("--prove", help="Prove causality and normalisation too.")
]
TttOption = Annotated[
    str | None,
    typer.Option(
        help="Score-first test-time training: sgd, adamw, rms or lora.",
        autocompletion=words("sgd", "adamw", "rms", "lora"),
    ),
]
TttSetOption = Annotated[
    list[str] | None,
    typer.Option(help="key=value of the test-time training, such as lr=0.01 or freeze=tok_emb."),
]
EngineOption = Annotated[
    str | None,
    typer.Option(
        help="native, numpy or torch; else the fastest that can do it here.",
        autocompletion=words("native", "numpy", "torch"),
    ),
]
OutOption = Annotated[Path | None, typer.Option(help="Where to write the score file.")]


def eval_command(
    model: ModelArgument,
    data: DataOption = None,
    split: SplitOption = "validation",
    mode: ModeOption = None,
    context: ContextOption = None,
    stride: StrideOption = None,
    batch_tokens: BatchOption = None,
    precision: PrecisionOption = None,
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
        from niblick.cli.progress import stages
        from niblick.functions import evaluate
        from niblick.runtime import read_world

    world = read_world(device)
    if out is not None:
        _check_place(out)
    loaded = facade.load(model, tokenizer=tokenizer)
    if world.is_main:
        say_shipped(loaded)
    sizes = {"context": context, "stride": stride, "batch_tokens": batch_tokens}
    options = _options(ttt, ttt_set or [], mode=mode, precision=precision, **sizes)
    with stages(enabled=world.is_main) as report:
        score = evaluate(
            loaded,
            data,
            split=split,
            engine=engine,  # type: ignore[arg-type]  # checked there
            device=device,
            threads=threads,
            prove=prove,
            on_progress=lambda share: report("scoring", share),
            **options,
        )
    if world.is_main:
        _report(loaded, score, out, as_json)


def _check_place(out: Path) -> None:
    """Refuse a file that could not be written, before anything is scored."""
    near = next((each for each in out.absolute().parents if each.exists()), out)
    said = None
    if out.is_dir():
        said = "it is a folder"
    elif not near.is_dir():
        said = f"{str(near)!r} is no folder"
    elif not os.access(out if out.exists() else near, os.W_OK):
        said = "permission denied"
    if said is not None:
        raise ScoreError(f"cannot write {str(out)!r}: {said}")


def _options(ttt: str | None, settings: list[str], **changes: Any) -> dict[str, Any]:
    """What the command line says in place of the recipe's evaluation section."""
    from niblick.scoring.options import (
        METHODS,
        Adaptation,
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
    return given


def _report(model: Model, score: Score, out: Path | None, as_json: bool) -> None:
    """Print the score; write it, into `scores/` of the run that holds the model or beside it."""
    from niblick.files import run_of
    from niblick.scoring.score_text import score_text, update_card

    run = run_of(model.path)
    if run is not None:
        path = out or run / "scores" / f"{score.name}.json"
    else:
        folder = Path() if model.is_shipped else model.path.parent
        path = out or folder / f"{model.path.stem}.{score.name}.score.json"
    print(json.dumps(score.summary(), allow_nan=False) if as_json else score_text(score))
    score.write(path)
    if run is not None:
        update_card(run, score)
    print(f"score written to {path}", file=sys.stderr)
