"""`niblick export` and `niblick verify`: a run as a submission folder, and its score without this
package; a model as a web page.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from niblick.cli.options import JsonOption, TokenizerOption
from niblick.errors import NiblickError


def export_command(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL", help="A finished run, or several seeds' folder; html: any model."
        ),
    ],
    to: Annotated[str, typer.Option(help="What to write: submission or html.")] = "submission",
    out: Annotated[
        Path | None, typer.Option(help="The new folder or file; else submission, page.html.")
    ] = None,
    author: Annotated[str, typer.Option(help="Author's name for submission.json.")] = "anonymous",
    name: Annotated[
        str | None, typer.Option(help="The submission's name; else the recipe's.")
    ] = None,
    tokenizer: TokenizerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write MODEL as a submission folder (README, submission.json, logs, artifact and one
    self-contained train_gpt.py), or as one HTML page that runs it in a browser, offline.
    """
    if to == "html":
        from niblick.cli.page import write_page

        write_page(str(run), out or Path("page.html"), tokenizer, as_json)
        return
    if to != "submission":
        raise NiblickError(f"cannot export to {to!r}; accepted: submission, html")
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
