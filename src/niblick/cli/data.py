"""`niblick data prepare | check | fetch`: make, verify and download training data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from niblick.cli.helps import PlainCommand
from niblick.cli.prepare import Json, prepare_command, show_dataset
from niblick.data.check import check
from niblick.data.dataset import open_dataset
from niblick.data.fetch import REPOSITORY, ROOT, fetch_fineweb
from niblick.errors import DataError
from niblick.text.tokenizer import load_tokenizer

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Make, verify and download training data.",
)


app.command("prepare", cls=PlainCommand, short_help="Tokenize a corpus into shards.")(
    prepare_command
)


@app.command("check", cls=PlainCommand, short_help="Verify shards; exit code 1 on problems.")
def check_command(
    folder: Annotated[Path, typer.Argument(help="Folder of shards.")],
    tokenizer: Annotated[
        str | None, typer.Option("--tokenizer", help="The tokenizer of a bare folder.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Verify shards: headers, sizes, ids, byte accounting, separation of splits. Exit code 1 on
    problems.
    """
    if not folder.is_dir():
        raise DataError(f"data folder {str(folder)!r} does not exist")
    report = check(folder, load_tokenizer(tokenizer) if tokenizer else None)
    if as_json:
        typer.echo(json.dumps(report.to_json(), indent=1))
    else:
        for split, found in report.splits.items():
            typer.echo(
                f"{split}: {found.documents:,} documents, {found.tokens:,} tokens, {found.bytes:,}"
                f" bytes; bytes compared with the decoded text in {found.accounted:,} documents"
            )
        for problem in report.problems:
            typer.echo(f"problem: {problem}")
        typer.echo(f"{folder}: {'sound' if report.ok else f'{len(report.problems)} problems'}")
    if not report.ok:
        raise typer.Exit(1)


@app.command("fetch", cls=PlainCommand, short_help="Download FineWeb shards; resumable.")
def fetch_command(
    source: Annotated[str, typer.Argument(help="What to fetch: fineweb.")],
    variant: Annotated[
        str, typer.Option("--variant", help="Tokenizer family: sp1024, or byte260.")
    ] = "sp1024",
    train_shards: Annotated[
        int, typer.Option("--train-shards", help="How many training shards.")
    ] = 1,
    out: Annotated[
        Path, typer.Option("--out", help="Folder that gets datasets/ and tokenizers/.")
    ] = Path("data"),
    repository: Annotated[
        str, typer.Option("--repo", help="Hugging Face dataset repository.")
    ] = REPOSITORY,
    root: Annotated[str, typer.Option("--root", help="Folder inside the repository.")] = ROOT,
    prefix: Annotated[
        str, typer.Option("--prefix", help="First part of the shards' file names.")
    ] = "fineweb",
    revision: Annotated[
        str | None, typer.Option("--revision", help="Branch, tag or commit.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Download FineWeb shards in the challenge's format; resumable, every file verified."""
    if source != "fineweb":
        raise DataError(f"cannot fetch {source!r}; expected fineweb")
    folder = fetch_fineweb(
        out=out,
        variant=variant,
        train_shards=train_shards,
        repository=repository,
        root=root,
        prefix=prefix,
        revision=revision,
        report=lambda line: typer.echo(line, err=True),
    )
    show_dataset(open_dataset(folder), as_json)
