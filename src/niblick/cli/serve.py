"""`niblick serve MODEL`: OpenAI's completions interface and a page, on this machine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from niblick.cli.imports import importing
from niblick.cli.models import say_shipped
from niblick.cli.options import ModelArgument, ThreadsOption, TokenizerOption
from niblick.errors import NiblickError
from niblick.extras import needs

KeyOption = Annotated[
    str | None, typer.Option(help="Clients must send it; other hosts than loopback need one.")
]
KeyFileOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="The key, from a file: seen by no other user.")
]
AllowOption = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME", help="A further name this server is called by. Repeatable."),
]


def serve_command(
    model: ModelArgument,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.")] = 8000,
    api_key: KeyOption = None,
    api_key_file: KeyFileOption = None,
    allow_host: AllowOption = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the model; the recipe's if not given.")
    ] = None,
    slots: Annotated[int | None, typer.Option(help="Texts written at once.")] = None,
    queue: Annotated[int, typer.Option(help="Texts that may wait for a slot.")] = 256,
    max_tokens: Annotated[int, typer.Option(help="Most tokens of one text.")] = 4096,
    max_prompt: Annotated[int, typer.Option(help="Most tokens of one prompt.")] = 16_384,
    drain_seconds: Annotated[
        int, typer.Option(help="Time that texts under way get once a signal has come.")
    ] = 30,
    tokenizer: TokenizerOption = None,
    threads: ThreadsOption = None,
) -> None:
    """Serve MODEL: OpenAI's completions interface, many texts at once, and a page to try it on."""
    with importing():
        from niblick import facade

        with needs("serve", "serve"):
            from niblick.serve.app import ServeOptions, Service, listen, run
    options = ServeOptions(
        host=host,
        port=port,
        name=name,
        api_key=_key(api_key, api_key_file),
        allowed_hosts=tuple(allow_host or ()),
        slots=slots,
        threads=threads,
        queue=queue,
        most_tokens=max_tokens,
        most_prompt=max_prompt,
        drain_seconds=drain_seconds,
    )
    loaded = facade.load(model, tokenizer=tokenizer)
    say_shipped(loaded)
    service = Service(loaded, options)
    with listen(host, port) as listener:
        place = f"[{host}]" if ":" in host else host
        print(
            f"niblick: serving {service.name} at http://{place}:{listener.getsockname()[1]}/"
            f" ({service.engine.name} engine, {service.engine.slots} slots)",
            file=sys.stderr,
            flush=True,
        )
        run(service, listener)


def _key(given: str | None, file: Path | None) -> str | None:
    if file is None:
        return given
    if given is not None:
        raise NiblickError("give --api-key or --api-key-file, not both")
    try:
        return file.read_text("utf-8").strip()
    except UnicodeDecodeError:
        raise NiblickError(f"--api-key-file {str(file)!r} is not text") from None
