"""`niblick data prepare | check | fetch`: make, verify and download training data."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from niblick.artifact.load import open_tokenizer
from niblick.cli.options import ExecutorOption
from niblick.cli.prepare import Work, prepare_large, show_part
from niblick.data.check import check
from niblick.data.corpus import load_corpus
from niblick.data.dataset import Dataset, open_dataset
from niblick.data.fetch import REPOSITORY, ROOT, fetch_fineweb
from niblick.data.inputs import is_large
from niblick.data.prepare import given_tokenizer, prepare
from niblick.data.stream import Progress, Streaming
from niblick.errors import DataError
from niblick.recipe import load_recipe
from niblick.text.bpe import TRAINED
from niblick.text.tokenizer import load_tokenizer

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Make, verify and download training data.",
)
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


def _summary(dataset: Dataset) -> dict[str, Any]:
    manifest = dataset.manifest
    splits = {
        split: {"tokens": dataset.token_count(split), "shards": len(dataset.files[split])}
        for split in dataset.files
    }
    for split, entry in manifest.splits.items() if manifest else ():
        splits[split] |= {"documents": entry.documents, "bytes": entry.bytes}
    return {
        "folder": str(dataset.folder),
        "corpus": dataset.name,
        "tokenizer": dataset.tokenizer.name,
        "vocab_size": dataset.tokenizer.vocab_size,
        "lossless": dataset.tokenizer.lossless,
        "tokenizer_bytes": len(dataset.tokenizer.to_bytes()),
        "splits": splits,
        "attribution": dataset.attribution,
    }


def _show(dataset: Dataset, as_json: bool) -> None:
    summary = _summary(dataset)
    if as_json:
        typer.echo(json.dumps(summary, indent=1))
        return
    lossless = "lossless" if summary["lossless"] else "lossy: it normalises text"
    typer.echo(
        f"{summary['folder']}: {summary['corpus']}, tokenizer {summary['tokenizer']} ({lossless})"
    )
    for split, counts in summary["splits"].items():
        typer.echo(
            f"  {split:<10} " + ", ".join(f"{value:,} {name}" for name, value in counts.items())
        )
    if summary["attribution"]:
        typer.echo(f"  {summary['attribution']}")


@app.command("prepare", short_help="Tokenize a corpus into shards.")
def prepare_command(
    corpus: Annotated[
        str,
        typer.Argument(
            help="wiki-vital; a file or folder of .txt, .md, .rst, .py, .html, .jsonl (also .gz,"
            " .zst), .parquet; or hub:OWNER/NAME, with @REVISION and /FOLDER or /PATTERN."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder to write the shards to.")],
    tokenizer: Annotated[
        str | None,
        typer.Option(
            "--tokenizer",
            help='"train", "train-within-words", "bytes", "fineweb-1024", a .model file, or a run'
            " or model whose tokenizer to use; else the recipe's.",
        ),
    ] = None,
    vocab_size: Annotated[
        int | None,
        typer.Option("--vocab-size", help="Size of a trained vocabulary; else the recipe's."),
    ] = None,
    recipe: Annotated[
        str, typer.Option("--recipe", help="The recipe that the shards are for.")
    ] = "pocket",
    shard_tokens: Annotated[
        int, typer.Option("--shard-tokens", min=1, help="Tokens in a shard, at most.")
    ] = 100_000_000,
    stream: Annotated[
        bool,
        typer.Option("--stream", help="Stream a corpus of 64 MB or less, too, as larger ones are."),
    ] = False,
    field: Annotated[
        str | None,
        typer.Option("--field", help="Streamed: the field or column of the text.", metavar="NAME"),
    ] = None,
    one_in: Annotated[
        int | None,
        typer.Option(
            "--one-in",
            min=3,
            help="Streamed: of so many documents one is validation and one test; else 20.",
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Streamed: worker processes; else one for each processor."),
    ] = None,
    part: Annotated[
        str | None,
        typer.Option(metavar="I/N", help="Streamed: do part I of N, as on one of N machines."),
    ] = None,
    executor: ExecutorOption = None,
    as_json: Json = False,
) -> None:
    """Tokenize a corpus into shards; training a tokenizer on its training split unless told
    otherwise. A large corpus is streamed: in bounded memory, and resumable.
    """
    wanted = load_recipe(recipe)
    spec = wanted.data.tokenizer if tokenizer is None else tokenizer
    if spec in TRAINED and vocab_size is None:
        vocab_size = wanted.model.vocab_size
    chosen = spec if spec in TRAINED else open_tokenizer(spec)
    options = {"--field": field, "--one-in": one_in, "--workers": workers, "--part": part}
    if stream or is_large(corpus):
        made = prepare_large(
            corpus,
            out,
            Streaming(
                tokenizer=spec,
                vocab_size=vocab_size or 0,
                shard_tokens=shard_tokens,
                field=field or "text",
                one_in=one_in or 20,
            ),
            given_tokenizer(chosen, vocab_size),
            Work(workers, part, executor),
        )
    else:
        _refuse_streamed({**options, "--executor": executor}, corpus)
        loaded = load_corpus(corpus)
        for note in loaded.notes:
            typer.echo(f"note: {note}", err=True)
        made = prepare(
            loaded, out=out, tokenizer=chosen, vocab_size=vocab_size, shard_tokens=shard_tokens
        )
    if isinstance(made, Progress):
        show_part(made, as_json)
        return
    if "validation" not in made.files:
        typer.echo(
            "note: no document fell into validation, without which nothing can be scored; one in 20"
            " does, by its hash: give more text, or sort it into folders train and validation",
            err=True,
        )
    _show(made, as_json)
    words = f"niblick train {shlex.quote(recipe)} --data {shlex.quote(str(out))}"
    typer.echo(f"train on it with: {words}", err=True)


def _refuse_streamed(options: dict[str, object], corpus: str) -> None:
    for option, value in options.items():
        if value is not None:
            raise DataError(
                f"{option} goes with a corpus that is streamed, and {corpus!r} is small: leave it"
                " out, or add --stream"
            )


@app.command("check", short_help="Verify shards; exit code 1 on problems.")
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


@app.command("fetch", short_help="Download FineWeb shards; resumable.")
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
    _show(open_dataset(folder), as_json)
