"""`niblick generate MODEL`: continue a prompt, streaming complete UTF-8 to standard output."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from niblick.cli.imports import importing
from niblick.cli.models import say_shipped
from niblick.cli.options import (
    DeviceOption,
    JsonOption,
    ModelArgument,
    ThreadsOption,
    TokenizerOption,
)

if TYPE_CHECKING:
    from niblick.engine import Continuation

PromptOption = Annotated[str, typer.Option(help="Text to continue; empty starts a document.")]
MaxTokensOption = Annotated[int, typer.Option(help="Most tokens to generate.")]
TemperatureOption = Annotated[float, typer.Option(help="0 always takes the likeliest token.")]
TopKOption = Annotated[int, typer.Option(help="Draw among the k likeliest tokens; 0: all.")]
TopPOption = Annotated[
    float, typer.Option(help="Draw among the likeliest tokens that hold this probability.")
]
SeedOption = Annotated[int, typer.Option(help="Same seed, same text.")]
StopOption = Annotated[list[str] | None, typer.Option(help="End before this text. Repeatable.")]
AcrossOption = Annotated[
    bool, typer.Option("--across-documents", help="Go on where the model ends its document.")
]


def generate_command(
    model: ModelArgument,
    prompt: PromptOption = "",
    max_tokens: MaxTokensOption = 256,
    temperature: TemperatureOption = 0.8,
    top_k: TopKOption = 0,
    top_p: TopPOption = 1.0,
    seed: SeedOption = 0,
    stop: StopOption = None,
    across_documents: AcrossOption = False,
    tokenizer: TokenizerOption = None,
    threads: ThreadsOption = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Continue a prompt. Prints the continuation only, as it is produced."""
    with importing():
        from niblick import facade
        from niblick.engine import Sampling, start_text
        from niblick.engine.library import is_building

        sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
        loaded = facade.load(model, tokenizer=tokenizer)
    say_shipped(loaded)
    text = start_text(
        loaded.open_engine(threads=threads, build="background", device=device),
        loaded.tokenizer,
        prompt,
        sampling,
        max_tokens=max_tokens,
        stop=stop or (),
        across_documents=across_documents,
    )
    started = time.perf_counter()
    for piece in text:
        if not as_json:
            _write(piece)
    if as_json:
        _write(_document(text, prompt, time.perf_counter() - started))
    _write("\n")
    if is_building():
        print(
            "niblick: finishing to compile the fast engine, once on this machine", file=sys.stderr
        )


def _write(text: str) -> None:
    """To standard output, at once."""
    sys.stdout.buffer.write(text.encode())
    sys.stdout.buffer.flush()


def _document(text: Continuation, prompt: str, seconds: float) -> str:
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
    return json.dumps(document, ensure_ascii=False)
