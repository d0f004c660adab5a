"""`niblick generate MODEL`: continue a prompt, streaming complete UTF-8 to standard output."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from niblick.cli.imports import importing
from niblick.errors import NiblickError

if TYPE_CHECKING:
    from niblick.artifact import Opened
    from niblick.engine import Continuation
    from niblick.text.tokenizer import Tokenizer


def generate_command(
    model: Annotated[Path, typer.Argument(help="Artifact, checkpoint or run directory.")],
    prompt: Annotated[str, typer.Option(help="Text to continue; empty starts a document.")] = "",
    max_tokens: Annotated[int, typer.Option(help="Most tokens to generate.")] = 256,
    temperature: Annotated[float, typer.Option(help="0 always takes the likeliest token.")] = 0.8,
    top_k: Annotated[int, typer.Option(help="Draw among the k likeliest tokens; 0: all.")] = 0,
    top_p: Annotated[
        float, typer.Option(help="Draw among the likeliest tokens that hold this probability.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="Same seed, same text.")] = 0,
    stop: Annotated[
        list[str] | None, typer.Option(help="End before this text. Repeatable.")
    ] = None,
    across_documents: Annotated[
        bool, typer.Option("--across-documents", help="Go on where the model ends its document.")
    ] = False,
    tokenizer: Annotated[
        str | None,
        typer.Option(help="A .model file, fineweb-1024 or bytes, for models that bring none."),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="Processor threads; all that torch would use if not given.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document at the end instead.")
    ] = False,
) -> None:
    """Continue a prompt. Prints the continuation only, as it is produced."""
    with importing():
        from niblick.artifact import open_file
        from niblick.engine import Sampling, open_engine, start_text
        from niblick.engine.library import is_building
        from niblick.model import build_model

    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    loaded = open_file(model)
    found = _tokenizer(loaded, tokenizer)
    engine = open_engine(
        build_model(loaded.recipe, loaded.tensors), threads=threads, build="background"
    )
    del loaded  # the native engine holds its own, smaller weights
    text = start_text(
        engine,
        found,
        prompt,
        sampling,
        max_tokens=max_tokens,
        stop=stop or (),
        across_documents=across_documents,
    )
    started = time.perf_counter()
    for piece in text:
        if not as_json:
            sys.stdout.buffer.write(piece.encode())
            sys.stdout.buffer.flush()
    if as_json:
        _print_json(text, prompt, time.perf_counter() - started)
    else:
        sys.stdout.buffer.write(b"\n")
        sys.stdout.buffer.flush()
    if is_building():
        print(
            "niblick: finishing to compile the fast engine, once on this machine", file=sys.stderr
        )


def _tokenizer(loaded: Opened, wanted: str | None) -> Tokenizer:
    """The model's own tokenizer, or the one asked for."""
    from niblick.text.tokenizer import load_tokenizer

    if wanted is not None:
        return load_tokenizer(wanted)
    if loaded.tokenizer is None:
        raise NiblickError(
            f"{str(loaded.path)!r} brings no tokenizer; give one with --tokenizer FILE"
        )
    return loaded.tokenizer


def _print_json(text: Continuation, prompt: str, seconds: float) -> None:
    document = {
        "prompt": prompt,
        "text": text.text,
        "tokens": text.tokens,
        "prompt_tokens": len(text.prompt),
        "finish": text.finish,
        "seed": text.sampling.seed,
        "engine": text.engine.name,
        "seconds": round(seconds, 4),
        "tokens_per_second": round(len(text.tokens) / seconds, 1) if text.tokens else 0.0,
        "state_bytes": text.engine.state_bytes,
    }
    sys.stdout.buffer.write(json.dumps(document, ensure_ascii=False).encode() + b"\n")
    sys.stdout.buffer.flush()
