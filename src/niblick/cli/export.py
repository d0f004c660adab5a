"""`niblick export` and `niblick verify`: a run as a submission folder, and its score without this
package.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from niblick.cli.options import JsonOption
from niblick.errors import NiblickError


def export_command(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="A finished run, or the folder of several seeds.")
    ],
    to: Annotated[
        str, typer.Option(help="What to write: submission, or tokenizer (a .model file).")
    ] = "submission",
    out: Annotated[
        Path | None, typer.Option(help="The new folder or file; else submission, tokenizer.model.")
    ] = None,
    author: Annotated[str, typer.Option(help="Author's name for submission.json.")] = "anonymous",
    name: Annotated[
        str | None, typer.Option(help="The submission's name; else the recipe's.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write RUN as a folder with README, submission.json, logs, artifact and one self-contained
    train_gpt.py.
    """
    if to == "tokenizer":
        _export_tokenizer(run, out or Path("tokenizer.model"), as_json)
        return
    if to != "submission":
        raise NiblickError(f"cannot export to {to!r}; accepted: submission, tokenizer")
    from niblick.exchange.submission import export_submission

    done = export_submission(run, out or Path("submission"), author=author, name=name)
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


def _export_tokenizer(model: Path, out: Path, as_json: bool) -> None:
    """Write the tokenizer that a model brings; an existing file is not replaced."""
    from niblick.artifact.load import open_tokenizer
    from niblick.files import write_atomically

    if not model.exists():
        raise NiblickError(f"no model at {str(model)!r}; give an artifact, checkpoint or run")
    tokenizer = open_tokenizer(str(model))
    if out.exists():
        raise NiblickError(f"{str(out)!r} is there already; choose another --out")
    data = tokenizer.to_file_bytes()
    write_atomically(out, (data,))
    facts = {
        "file": str(out),
        "tokenizer": tokenizer.name,
        "vocab_size": tokenizer.vocab_size,
        "lossless": tokenizer.lossless,
        "bytes": len(data),
        "sha256": tokenizer.sha256,
    }
    if as_json:
        print(json.dumps(facts))
    else:
        print(f"{out}: {tokenizer.name}, {tokenizer.vocab_size:,} ids, {len(data):,} bytes")


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
