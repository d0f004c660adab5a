"""`niblick generate MODEL`: continue a prompt; the words that typer understands.

What the command does is in `niblick.cli.generation`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from niblick.cli.generation import MAX_TOKENS, TEMPERATURE, generate
from niblick.cli.options import (
    DeviceOption,
    JsonOption,
    ModelArgument,
    ThreadsOption,
    TokenizerOption,
)

PromptOption = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT", help="Text to continue; - reads standard input, '' starts a document."
    ),
]
FileOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="A file that holds the text to continue.")
]
InteractiveOption = Annotated[
    bool, typer.Option("--interactive", help="Continue one line after another that you type.")
]
MaxTokensOption = Annotated[int, typer.Option(help="Most tokens to generate.")]
TemperatureOption = Annotated[float, typer.Option(help="0 always takes the likeliest token.")]
TopKOption = Annotated[
    int | None, typer.Option(help="Draw among the k likeliest tokens; all unless given.")
]
TopPOption = Annotated[
    float | None, typer.Option(help="Draw among the likeliest tokens that hold this probability.")
]
SeedOption = Annotated[
    int | None, typer.Option(help="Same seed, same text; 0 unless given.", show_default=False)
]
StopOption = Annotated[list[str] | None, typer.Option(help="End before this text. Repeatable.")]
AcrossOption = Annotated[
    bool, typer.Option("--across-documents", help="Go on where the model ends its document.")
]


def generate_command(
    model: ModelArgument,
    prompt: PromptOption = None,
    prompt_file: FileOption = None,
    interactive: InteractiveOption = False,
    max_tokens: MaxTokensOption = MAX_TOKENS,
    temperature: TemperatureOption = TEMPERATURE,
    top_k: TopKOption = None,
    top_p: TopPOption = None,
    seed: SeedOption = None,
    stop: StopOption = None,
    across_documents: AcrossOption = False,
    tokenizer: TokenizerOption = None,
    threads: ThreadsOption = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Continue a prompt: text, a file, or what comes through a pipe. Prints the continuation only,
    as it is produced.
    """
    generate(
        model,
        prompt=prompt,
        prompt_file=prompt_file,
        interactive=interactive,
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        stop=stop,
        across_documents=across_documents,
        tokenizer=tokenizer,
        threads=threads,
        device=device,
        as_json=as_json,
    )
