"""`niblick export`: a model in other formats, a run as a submission folder; `niblick verify`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from niblick.cli.completion import models, words
from niblick.cli.options import JsonOption, TokenizerOption
from niblick.cli.progress import working
from niblick.errors import NiblickError


def export_command(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="An artifact, a checkpoint, a run or a shipped model; for a submission, one of"
            " the last two, or a folder of several seeds.",
            autocompletion=models,
        ),
    ],
    to: Annotated[
        str,
        typer.Option(
            help="submission, hf, onnx, gguf, tokenizer or html.",
            autocompletion=words("submission", "hf", "onnx", "gguf", "tokenizer", "html"),
        ),
    ] = "submission",
    out: Annotated[
        Path | None,
        typer.Option(help="The new folder or file; named after the format unless given."),
    ] = None,
    author: Annotated[str, typer.Option(help="Author's name for submission.json.")] = "anonymous",
    name: Annotated[
        str | None, typer.Option(help="The submission's name; else the recipe's.")
    ] = None,
    tokenizer: TokenizerOption = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace a file or an earlier export at --out.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a run as a submission (a folder with README, submission.json, logs, artifact and one
    self-contained train_gpt.py), or MODEL as a folder for transformers, as an ONNX or GGUF file,
    its tokenizer as a SentencePiece model, or one HTML page that runs it in a browser, offline.
    """
    if to == "submission":
        if tokenizer is not None:
            raise NiblickError("--tokenizer goes with other formats: a run brings its tokenizer")
        _submission(Path(model), out or Path("submission"), author, name, force, as_json)
    elif to in _FORMATS:
        if name is not None or author != "anonymous":
            raise NiblickError(f"--name and --author go with --to submission, not with {to}")
        _format(model, to, out or Path(_FORMATS[to]), tokenizer, force, as_json)
    else:
        raise NiblickError(f"cannot export to {to!r}; accepted: submission, {', '.join(_FORMATS)}")


# Each format, and where it goes by default.
_FORMATS = {
    "hf": "hf",
    "onnx": "model.onnx",
    "gguf": "model.gguf",
    "tokenizer": "tokenizer.model",
    "html": "page.html",
}


def _format(
    model: str, to: str, out: Path, tokenizer: str | None, force: bool, as_json: bool
) -> None:
    from niblick.exchange.formats import export_model

    with working(f"writing {out}", enabled=not as_json):
        facts = export_model(model, to, out, tokenizer=tokenizer, force=force)
    print(json.dumps(facts) if as_json else f"{out}: {facts['bytes']:,} bytes as {to}")
    if to == "html":
        print("open it in a browser; it needs no server and no network", file=sys.stderr)


def _submission(
    run: Path, out: Path, author: str, name: str | None, force: bool, as_json: bool
) -> None:
    from niblick.exchange.submission import export_submission

    with working("writing the program that runs without this package", enabled=not as_json):
        done = export_submission(run, out, author=author, name=name, force=force)
    facts = {
        "folder": str(done.folder),
        "bpb": done.bpb,
        "bytes_code": done.code_bytes,
        "bytes_model": done.artifact_bytes,
        "bytes_total": done.code_bytes + done.artifact_bytes,
    }
    if as_json:
        print(json.dumps(facts))
        return
    print(
        f"{done.folder}: {done.bpb:.6f} bpb, code {done.code_bytes:,} + artifact"
        f" {done.artifact_bytes:,} = {facts['bytes_total']:,} bytes"
    )
    print(f"check it with: niblick verify {done.folder}", file=sys.stderr)


def verify_command(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A folder that `niblick export` wrote.")
    ],
    data: Annotated[
        Path | None, typer.Option(help="Folder of shards; else the submission's own corpus.")
    ] = None,
    trust: Annotated[
        bool, typer.Option("--trust", help="Run the folder's code though it was not exported here.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Score DIR's artifact by its own script, where this package cannot be imported; exit code 1 if
    it differs.
    """
    from niblick.exchange.submission import verify_submission

    with working("scoring the artifact by the submission's own script", enabled=not as_json):
        found = verify_submission(folder, trust=trust, data=data)
    if as_json:
        print(
            json.dumps(
                {
                    "claimed": found.claimed,
                    "found": found.found,
                    "agrees": found.agrees,
                    "score": found.score,
                }
            )
        )
    else:
        print(
            f"claimed {found.claimed:.6f}, found {found.found:.6f} bpb:"
            f" {'the same' if found.agrees else 'DIFFERENT'}"
        )
    if not found.agrees:
        raise typer.Exit(1)
