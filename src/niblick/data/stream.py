"""Preparing corpora of any size: in bounded memory, on many processes or machines, resumable.

The input's units (`niblick.data.inputs`) are tokenized apart, in any order and anywhere, into
sorted runs beside the output folder (`niblick.data.spill`). When all are there, shards are put
together from them. What is finished is never done again. The result is a function of the input and
the settings: the same bytes for any number of workers, parts and interruptions.

A document is held out by its hash: h = SHA-256 as a big-endian integer mod N; 0 is validation, 1
test. So an exact copy is never on the other side, and nothing has to be compared. Near copies are
looked for in small corpora only (`niblick.data.splits`). In folders sorted by hand, documents that
a more strictly held-out split has too are left out. All splits are in the order of a second hash.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from niblick.data import assemble
from niblick.data.assemble import ShardJob, make_shard, plan_shards, split_entry
from niblick.data.corpus import refuse_empty
from niblick.data.dataset import Dataset
from niblick.data.inputs import HUB, Inputs, Unit, list_inputs, read_unit
from niblick.data.output import TOKENIZER_FILE, place_of, put_in_place, reuse, save_manifest
from niblick.data.spill import Run, Tokens, write_run
from niblick.data.splits import text_digest
from niblick.errors import DataError
from niblick.executors import run_all
from niblick.files import locked, read_json, write_atomically
from niblick.registry import load_plugin, loaded_plugins
from niblick.text.bytetable import refuse_surrogates
from niblick.text.encoder import compile_encoder
from niblick.text.learning import SAMPLE, TRAINED, train_tokenizer
from niblick.text.tokenizer import Tokenizer, load_tokenizer

SPLITS = ("train", "validation", "test")
_VERSION = "1"  # changes when the same inputs would give other shards
_RUN_TOKENS = 16_000_000  # held by a worker before it writes a run
_SAMPLED, _FETCHED = 64, 4  # units whose beginnings a tokenizer is trained on; remote ones
Report = Callable[["Progress"], None]


@dataclass(frozen=True, kw_only=True)
class Streaming:
    """Settings that decide the result. `one_in` documents one is validation and one test."""

    tokenizer: str = "train"
    vocab_size: int = 1024
    shard_tokens: int = 100_000_000
    field: str = "text"
    one_in: int = 20


@dataclass(frozen=True)
class Progress:
    """Units that are tokenized, of how many, the bytes of their text; whether shards are being put
    together, and how many are.
    """

    units: int
    of: int
    bytes: int
    shards: int | None = None


@dataclass(frozen=True)
class Job:
    """One unit for one worker, who needs nothing else but the files; plain values, so that any
    executor can carry it.
    """

    work: str
    number: int
    root: str
    unit: Unit
    field: str
    one_in: int
    plugins: tuple[str, ...] = ()


def prepare_stream(
    source: str | Path,
    out: Path,
    settings: Streaming,
    fixed: Tokenizer | None = None,
    *,
    executor: Executor | None = None,
    part: tuple[int, int] = (1, 1),
    report: Report | None = None,
    say: Callable[[str], None] | None = None,
) -> Dataset | Progress:
    """Stream `source` into shards in `out`, or reuse them; `fixed` is the tokenizer, else one is
    trained.

    Part (i, n) tokenizes every n-th unit only; whichever part finds all units done puts the shards
    together, and the others give their `Progress`. Jobs go to `executor`, else are done here.
    Raises `DataError`; what is finished stays beside `out`, and the same call goes on from there.
    """
    out = place_of(out)
    if settings.one_in < 3:
        raise DataError(f"one document in {settings.one_in} cannot be held out twice; 3 or more")
    tell = say or (lambda message: None)
    inputs = list_inputs(source, settings.field, SPLITS)
    if inputs.passed_over:
        tell(f"passed over, being no known kind of text: {inputs.passed_over}")
    key = _key(inputs, settings, fixed)
    work = out.absolute().parent / f".{out.name}.{key[:12]}"
    if (present := reuse(out, key)) is not None:
        shutil.rmtree(work, ignore_errors=True)
        return present
    compile_encoder()
    try:
        _begin(work, inputs, settings, fixed)
        jobs = [
            Job(str(work), number, inputs.root, unit, settings.field, settings.one_in,
                loaded_plugins())
            for number, unit in enumerate(inputs.units)
        ]  # fmt: skip
        mine = [job for job in jobs if job.number % part[1] == part[0] - 1]
        _tokenize(work, mine, len(jobs), executor, report)
        if _done(work, jobs) < len(jobs):
            return _progress(work, jobs)
        with locked(work / "assembling"):
            if (present := reuse(out, key)) is not None:
                return present
            return _finish(work, out, key, inputs, jobs, settings, executor, report)
    except OSError as error:
        if (present := reuse(out, key)) is not None:
            return present  # another part has just finished
        raise DataError(f"cannot write {str(work)!r}: {error.strerror or error}") from None


def _key(inputs: Inputs, settings: Streaming, fixed: Tokenizer | None) -> str:
    trained = f"{settings.tokenizer} {settings.vocab_size}"
    what = (
        *("stream", _VERSION, inputs.sha256, fixed.sha256 if fixed else trained),
        *map(str, (settings.shard_tokens, settings.field, settings.one_in)),
    )
    return hashlib.sha256("\n".join(what).encode()).hexdigest()


def _begin(work: Path, inputs: Inputs, settings: Streaming, fixed: Tokenizer | None) -> None:
    """What all units need: the tokenizer, and what held-out folders hold. One process makes it."""
    (work / "units").mkdir(parents=True, exist_ok=True)
    with locked(work / "beginning"):
        held = work / "held"
        if inputs.by_hand and not held.exists():
            write_atomically(held, _held_out(inputs, settings.field, work))
        if (work / TOKENIZER_FILE).exists():
            return
        if fixed is None:
            sample, how = _sample(inputs, settings, work), TRAINED[settings.tokenizer]
            fixed = train_tokenizer(sample, vocab_size=settings.vocab_size, **how)
        write_atomically(work / TOKENIZER_FILE, (fixed.to_file_bytes(),))


def _held_out(inputs: Inputs, field: str, work: Path) -> Iterable[bytes]:
    """The digests of test documents, then those of validation documents that are not among them,
    each with a byte for its split in front.
    """
    seen: set[bytes] = set()
    for split in ("test", "validation"):
        mark = bytes((SPLITS.index(split),))
        for unit in (unit for unit in inputs.units if unit.split == split):
            for text in read_unit(inputs.root, unit, field, work):
                if (digest := text_digest(text)) not in seen:
                    seen.add(digest)
                    yield mark + digest


@cache
def _load_held(path: str) -> dict[bytes, int]:
    data = Path(path).read_bytes() if Path(path).exists() else b""
    return {data[i + 1 : i + 33]: data[i] for i in range(0, len(data), 33)}


def _sample(inputs: Inputs, settings: Streaming, work: Path) -> list[str]:
    """Training text of at most 16 million characters: the beginnings of up to 64 units, evenly
    spaced, or of 4 that must be fetched.
    """
    units = [unit for unit in inputs.units if unit.split in ("", "train")]
    count = min(len(units), _FETCHED if inputs.root.startswith(HUB) else _SAMPLED)
    chosen = [units[i * len(units) // count] for i in range(count)]
    held, texts = _load_held(str(work / "held")), list[str]()
    for unit in chosen:
        room = SAMPLE // len(chosen)
        for text in read_unit(inputs.root, unit, settings.field, work):
            if _split_of(text_digest(text), unit, settings.one_in, held) == 0:
                texts.append(text[:room])
                room -= len(text)
            if room <= 0:
                break
    return texts


def _split_of(digest: bytes, unit: Unit, one_in: int, held: dict[bytes, int]) -> int | None:
    """The split of a document as an index; None for one that a held-out split has too."""
    if unit.split:
        own = SPLITS.index(unit.split)
        return own if held.get(digest, own) == own else None
    part = int.from_bytes(digest, "big") % one_in
    return {0: 1, 1: 2}.get(part, 0)


def _unit_file(job: Job) -> Path:
    return Path(job.work) / "units" / f"{job.number:06d}.json"


def _done(work: Path, jobs: Sequence[Job]) -> int:
    there = {path.name for path in (work / "units").iterdir()}
    return sum(_unit_file(job).name in there for job in jobs)


def _progress(work: Path, jobs: Sequence[Job]) -> Progress:
    found = [read_json(_unit_file(job)) for job in jobs if _unit_file(job).exists()]
    return Progress(len(found), len(jobs), sum(sum(unit["bytes"]) for unit in found))


def _tokenize(
    work: Path, jobs: Sequence[Job], of: int, executor: Executor | None, report: Report | None
) -> None:
    """Do the jobs that are not done, here or on `executor`; the first failure ends it."""
    left = [job for job in jobs if not _unit_file(job).exists()]
    done, size = of - len(left), 0
    for added in run_all(tokenize_unit, left, executor):
        done, size = done + 1, size + added
        if report is not None:
            report(Progress(done, of, size))


def tokenize_unit(job: Job) -> int:
    """Read a unit, tokenize it, write its runs; the bytes of its text."""
    for module in job.plugins:
        load_plugin(module)
    work = Path(job.work)
    tokenizer, held = _load_tokenizer(str(work)), _load_held(str(work / "held"))
    made = _Unit(work / "units" / f"{job.number:06d}")
    for number, text in enumerate(read_unit(job.root, job.unit, job.field, work)):
        if not text:
            continue
        refuse_surrogates(text, f"{job.unit.files[0]}: document {number}")
        data = text.encode()
        digest = hashlib.sha256(data).digest()
        split = _split_of(digest, job.unit, job.one_in, held)
        if split is not None:
            made.add(split, digest, tokenizer.encode_counted(text), len(data))
    made.flush()
    write_atomically(_unit_file(job), (json.dumps(made.summary()).encode(),), durable=False)
    return sum(made.bytes)


@cache
def _load_tokenizer(work: str) -> Tokenizer:
    return load_tokenizer(Path(work) / TOKENIZER_FILE)


class _Unit:
    """The documents of a unit, written as runs whenever there are many, and their sums."""

    def __init__(self, path: Path) -> None:
        self._path, self._runs, self._waiting = path, list[Run](), 0
        self._documents: list[list[tuple[int, Tokens]]] = [[] for _ in SPLITS]
        self.bytes, self.digests = [0, 0, 0], [0, 0, 0]

    def add(self, split: int, digest: bytes, tokens: Tokens, size: int) -> None:
        """One document; its place in the order is a hash of its digest."""
        place = int.from_bytes(hashlib.sha256(b"order" + digest).digest()[:16], "big")
        self._documents[split].append((place, tokens))
        self.bytes[split] += size
        self.digests[split] += int.from_bytes(digest, "big")
        self._waiting += len(tokens)
        if self._waiting > _RUN_TOKENS:
            self.flush()

    def flush(self) -> None:
        """Write what waits as a run."""
        if self._waiting:
            path = self._path.with_name(f"{self._path.name}-{len(self._runs):04d}")
            self._runs.append(write_run(path, self._documents))
        self._documents, self._waiting = [[] for _ in SPLITS], 0

    def summary(self) -> dict[str, Any]:
        """What putting shards together needs to know."""
        digests = [f"{digest % (1 << 256):064x}" for digest in self.digests]
        runs = [
            {"name": Path(run.path).name, "documents": run.documents, "tokens": run.tokens}
            for run in self._runs
        ]
        return {"runs": runs, "bytes": self.bytes, "digests": digests}


def _finish(
    work: Path,
    out: Path,
    key: str,
    inputs: Inputs,
    jobs: Sequence[Job],
    settings: Streaming,
    executor: Executor | None,
    report: Report | None,
) -> Dataset:
    """Put the shards together, write the manifest, move the folder into place."""
    assemble.sum_units.cache_clear()
    sums, done = assemble.sum_units(str(work), len(jobs)), len(jobs)
    refuse_empty(inputs.name, documents=any(sums.bytes), training=sums.bytes[0] > 0)
    (work / "shards").mkdir(exist_ok=True)
    made: list[tuple[str, list[ShardJob]]] = []
    for split, name in enumerate(SPLITS):
        if planned := plan_shards(work, done, split, name, settings.shard_tokens):
            made.append((name, planned))
    entries = {}
    for number, entry in enumerate(
        run_all(make_shard, [job for _, planned in made for job in planned], executor), 1
    ):
        entries[entry.file] = entry
        if report is not None:
            report(Progress(done, done, sum(sums.bytes), number))
    splits = {
        name: split_entry(work, sums, SPLITS.index(name), [entries[job.name] for job in planned])
        for name, planned in made
    }
    (work / "data" / TOKENIZER_FILE).write_bytes((work / TOKENIZER_FILE).read_bytes())
    save_manifest(
        work / "data",
        load_tokenizer(work / TOKENIZER_FILE),
        key=key,
        corpus=inputs.name,
        corpus_sha256=sums.sha256(),
        attribution="",
        splits=splits,
    )
    dataset = put_in_place(work / "data", out, key)
    shutil.rmtree(work, ignore_errors=True)
    return dataset
