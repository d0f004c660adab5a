"""What `niblick generate MODEL` does: continue a prompt, streaming complete UTF-8 to standard
output.

The prompt is what `--prompt` says, a file's text, or what comes through a pipe; with
`--interactive` it is what is typed, line after line (`niblick.cli.conversation`). No typer.
"""

from __future__ import annotations

import json
import os
import select
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from niblick.cli.imports import importing
from niblick.cli.models import say_shipped
from niblick.errors import NiblickError

if TYPE_CHECKING:
    from niblick.engine import Continuation, Engine, Sampling
    from niblick.facade import Model

MAX_TOKENS, TEMPERATURE = 256, 0.8  # unless given
_PATIENCE = 2.0  # seconds of silence on a pipe before it is said what is being waited for


def generate(
    model: str,
    *,
    prompt: str | None = None,
    prompt_file: Path | None = None,
    interactive: bool = False,
    max_tokens: int = MAX_TOKENS,
    temperature: float = TEMPERATURE,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    stop: list[str] | None = None,
    across_documents: bool = False,
    tokenizer: str | None = None,
    threads: int | None = None,
    device: str | None = None,
    as_json: bool = False,
) -> None:
    """Continue a prompt: text, a file, or what comes through a pipe. Prints the continuation only,
    as it is produced.
    """
    _refuse_idle(temperature, {"--top-k": top_k, "--top-p": top_p, "--seed": seed})
    if interactive and (as_json or prompt_file is not None or prompt is not None):
        raise NiblickError("--interactive takes what is typed: no --prompt, --prompt-file, --json")
    with importing():
        from niblick import facade
        from niblick.engine import Sampling
        from niblick.engine.library import is_building

        sampling = Sampling(
            temperature=temperature, top_k=top_k or 0, top_p=_or(top_p, 1.0), seed=seed or 0
        )
        loaded = facade.load(model, tokenizer=tokenizer)
    say_shipped(loaded)
    text = "" if interactive else read_prompt(prompt, prompt_file)
    start = _starter(
        loaded,
        loaded.open_engine(threads=threads, build="background", device=device),
        stop=stop or (),
        across_documents=across_documents,
    )
    if interactive:
        from niblick.cli.conversation import converse

        converse(start, sampling, max_tokens)
    else:
        _once(start(text, sampling, max_tokens), text, as_json)
    if is_building():
        print(
            "niblick: finishing to compile the fast engine, once on this machine", file=sys.stderr
        )


def _or(value: float | None, other: float) -> float:
    return other if value is None else value


def _refuse_idle(temperature: float, given: dict[str, float | None]) -> None:
    """Options that choose among tokens do nothing where the likeliest is always taken."""
    idle = [name for name, value in given.items() if value is not None]
    if temperature == 0 and idle:
        raise NiblickError(
            f"{idle[0]} does nothing at --temperature 0, which always takes the likeliest token"
        )


# (prompt, sampling, most tokens) -> its continuation
Start = Callable[[str, "Sampling", int], "Continuation"]


def _starter(model: Model, engine: Engine, **options: Any) -> Start:
    from niblick.engine import start_text

    def start(prompt: str, sampling: Sampling, max_tokens: int) -> Continuation:
        return start_text(
            engine, model.tokenizer, prompt, sampling, max_tokens=max_tokens, **options
        )

    return start


def _once(text: Continuation, prompt: str, as_json: bool) -> None:
    started = time.perf_counter()
    for piece in text:
        if not as_json:
            write(piece)
    if as_json:
        write(_document(text, prompt, time.perf_counter() - started))
    write("\n")


def read_prompt(prompt: str | None, file: Path | None) -> str:
    """The text to continue. A line's end at the end of a file or of standard input is left out.

    Raises `NiblickError` where two prompts are given, or one that is not UTF-8.
    """
    if prompt is not None and file is not None:
        raise NiblickError("give --prompt or --prompt-file, not both")
    if file is not None and str(file) != "-":
        return _decoded(file.read_bytes(), str(file))
    if prompt not in (None, "-"):
        return str(prompt)
    if prompt is None and file is None and not _is_fed():
        return ""
    return _decoded(_read_standard_input(), "standard input")


def _is_fed() -> bool:
    """Whether standard input is a pipe or a file, so that somebody has put a prompt there."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError, AttributeError):  # closed, or not of the system
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


def _read_standard_input() -> bytes:
    if sys.stdin is None:
        raise NiblickError("standard input is closed: there is no prompt to read")
    if sys.stdin.isatty():
        print("the prompt, please; end it with Ctrl-D", file=sys.stderr, flush=True)
    elif os.name == "posix" and not select.select([sys.stdin], [], [], _PATIENCE)[0]:
        print(
            "niblick: waiting for a prompt on standard input (--prompt '' starts a document)",
            file=sys.stderr,
            flush=True,
        )
    return sys.stdin.buffer.read()


def _decoded(data: bytes, source: str) -> str:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise NiblickError(
            f"{source} is not UTF-8: byte {error.start} is 0x{data[error.start]:02X}"
        ) from None
    return text.removesuffix("\n").removesuffix("\r")


def write(text: str) -> None:
    """To standard output, at once."""
    if sys.stdout is None:
        raise NiblickError("standard output is closed: there is nowhere to write")
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
