"""`niblick data prepare`: a corpus into shards; a large one on workers, in parts, with progress."""

from __future__ import annotations

import json
import re
import shlex
import time
from concurrent.futures import Executor
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from niblick.artifact.load import open_tokenizer
from niblick.cli.options import ExecutorOption
from niblick.data.corpus import corpora, load_corpus
from niblick.data.dataset import Dataset
from niblick.data.inputs import is_large
from niblick.data.prepare import given_tokenizer, prepare
from niblick.data.stream import Progress, Streaming, prepare_stream
from niblick.errors import DataError
from niblick.executors import open_executor, process_pool
from niblick.recipe import load_recipe
from niblick.runtime import available_processors
from niblick.text.learning import TRAINED
from niblick.text.tokenizer import Tokenizer
from niblick.units import format_seconds

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
_EVERY = 5.0  # seconds between two lines


CorpusArgument = Annotated[
    str,
    typer.Argument(
        help="wiki-vital; a file or folder of .txt, .md, .rst, .py, .html, .jsonl (also .gz, .zst),"
        " .parquet; or hub:OWNER/NAME, with @REVISION and /FOLDER or /PATTERN."
    ),
]
OutOption = Annotated[Path, typer.Option("--out", help="Folder to write the shards to.")]
TokenizerOption = Annotated[
    str | None,
    typer.Option(
        "--tokenizer",
        help=f"{', '.join(TRAINED)}, bytes, fineweb-1024, a .model file,"
        " or a run or model whose tokenizer to use; else the recipe's.",
    ),
]
VocabularyOption = Annotated[
    int | None,
    typer.Option("--vocab-size", help="Size of a trained vocabulary; else the recipe's."),
]
RecipeOption = Annotated[str, typer.Option("--recipe", help="The recipe that the shards are for.")]
ShardOption = Annotated[
    int, typer.Option("--shard-tokens", min=1, help="Tokens in a shard, at most.")
]
StreamOption = Annotated[
    bool,
    typer.Option("--stream", help="Stream a corpus of 64 MB or less, too, as larger ones are."),
]
FieldOption = Annotated[
    str | None,
    typer.Option("--field", help="Streamed: the field or column of the text.", metavar="NAME"),
]
OneInOption = Annotated[
    int | None,
    typer.Option(
        "--one-in",
        min=3,
        help="Streamed: of so many documents one is validation and one test; else 20.",
    ),
]
WorkersOption = Annotated[
    int | None, typer.Option(min=1, help="Streamed: worker processes; else one for each processor.")
]
PartOption = Annotated[
    str | None,
    typer.Option(metavar="I/N", help="Streamed: do part I of N, as on one of N machines."),
]


def prepare_command(
    corpus: CorpusArgument,
    out: OutOption,
    tokenizer: TokenizerOption = None,
    vocab_size: VocabularyOption = None,
    recipe: RecipeOption = "pocket",
    shard_tokens: ShardOption = 100_000_000,
    stream: StreamOption = False,
    field: FieldOption = None,
    one_in: OneInOption = None,
    workers: WorkersOption = None,
    part: PartOption = None,
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
    made: Dataset | Progress
    if str(corpus) not in corpora and (stream or is_large(corpus)):
        settings = Streaming(
            tokenizer=spec,
            vocab_size=vocab_size or 0,
            shard_tokens=shard_tokens,
            field=field or "text",
            one_in=one_in or 20,
        )
        fixed = given_tokenizer(chosen, vocab_size)
        made = _prepare_large(corpus, out, settings, fixed, _Work(workers, part, executor))
    else:
        options = {"--field": field, "--one-in": one_in, "--workers": workers, "--part": part}
        _refuse_streamed({**options, "--executor": executor, "--stream": stream or None}, corpus)
        loaded = load_corpus(corpus)
        for note in loaded.notes:
            _note(note)
        made = prepare(
            loaded, out=out, tokenizer=chosen, vocab_size=vocab_size, shard_tokens=shard_tokens
        )
    if isinstance(made, Progress):
        _show_part(made, as_json)
    else:
        _show_made(made, recipe, as_json)


def _refuse_streamed(options: dict[str, object], corpus: str) -> None:
    for option, value in options.items():
        if value is not None and corpus in corpora:
            raise DataError(f"{option} goes with text of your own, not with {corpus!r}")
        if value is not None:
            raise DataError(
                f"{option} goes with a corpus that is streamed, and {corpus!r} is small: leave it"
                " out, or add --stream"
            )


def _show_made(dataset: Dataset, recipe: str, as_json: bool) -> None:
    if "validation" not in dataset.files:
        _note(
            "no document fell into validation, without which nothing can be scored; one in 20"
            " does, by its hash: give more text, or sort it into folders train and validation"
        )
    show_dataset(dataset, as_json)
    words = f"niblick train {shlex.quote(recipe)} --data {shlex.quote(str(dataset.folder))}"
    typer.echo(f"train on it with: {words}", err=True)


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


def _counted(name: str, value: int) -> str:
    return f"{value:,} {name.removesuffix('s') if value == 1 else name}"


def show_dataset(dataset: Dataset, as_json: bool) -> None:
    """Print what a folder of shards holds."""
    summary = _summary(dataset)
    if as_json:
        typer.echo(json.dumps(summary, indent=1))
        return
    lossless = "lossless" if summary["lossless"] else "lossy: it normalises text"
    typer.echo(
        f"{summary['folder']}: {summary['corpus']}, tokenizer {summary['tokenizer']} ({lossless})"
    )
    for split, counts in summary["splits"].items():
        typer.echo(f"  {split:<10} " + ", ".join(_counted(*each) for each in counts.items()))
    if summary["attribution"]:
        typer.echo(f"  {summary['attribution']}")


@dataclass(frozen=True)
class _Work:
    """Who does the work: processes here, part "I/N" of it, an executor's factory."""

    workers: int | None = None
    part: str | None = None
    executor: str | None = None

    def pool(self) -> AbstractContextManager[Executor | None]:
        """The executor that is asked for, else worker processes."""
        if self.executor is None:
            return process_pool(self.workers or available_processors())
        if self.workers is not None:
            raise DataError("--workers are this machine's, and --executor has its own; give one")
        return open_executor(self.executor)

    def numbers(self) -> tuple[int, int]:
        """(i, n) of "i/n"; `DataError` for anything else."""
        if self.part is None:
            return 1, 1
        match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", self.part)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise DataError(f"--part {self.part!r} is not like 2/4: the second of four")
        return int(match[1]), int(match[2])


def _prepare_large(
    corpus: str, out: Path, settings: Streaming, fixed: Tokenizer | None, work: _Work
) -> Dataset | Progress:
    """Stream `corpus` into shards in `out`, saying every few seconds how far it is."""
    part = work.numbers()
    with work.pool() as pool:
        return prepare_stream(
            corpus, out, settings, fixed, executor=pool, part=part, report=_Lines(), say=_note
        )


def _show_part(progress: Progress, as_json: bool) -> None:
    """What is left after a part."""
    if as_json:
        typer.echo(json.dumps(asdict(progress)))
        return
    typer.echo(
        f"{progress.units:,} of {progress.of:,} units are tokenized; the part that does the last"
        " puts the shards together"
    )


def _note(message: str) -> None:
    typer.echo(f"note: {message}", err=True)


class _Lines:
    """A line of progress on standard error now and then: what is done, its rate, time left."""

    def __init__(self) -> None:
        self._began = self._last = time.monotonic()
        self._first: Progress | None = None

    def __call__(self, now: Progress) -> None:
        if self._first is None:
            self._first = now
        clock = time.monotonic()
        if clock - self._last < _EVERY:
            return
        self._last = clock
        if now.shards is not None:
            typer.echo(f"{now.shards:,} shards written", err=True)
            return
        seconds, done = clock - self._began, now.units - self._first.units + 1
        left = (now.of - now.units) * seconds / done
        typer.echo(
            f"{now.units:,} of {now.of:,} units, {now.bytes / 1e6:,.0f} MB of text,"
            f" {now.bytes / 1e6 / seconds:,.1f} MB/s, about {format_seconds(left)} left",
            err=True,
        )
