"""From a corpus to a folder of shards: train or take a tokenizer, encode, write, and say what was
written.

The folder appears whole or not at all, and preparing the same inputs again reuses it. The tokenizer
is trained on the training split only.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from niblick.data import manifest as manifests
from niblick.data.corpus import SPLITS, Corpus, corpora, load_corpus, training_part
from niblick.data.dataset import Dataset, open_dataset
from niblick.data.inputs import HUB, is_large
from niblick.data.manifest import ShardEntry, SplitEntry
from niblick.data.output import (
    TOKENIZER_FILE,
    place_of,
    put_in_place,
    reuse,
    save_manifest,
    shard_name,
)
from niblick.data.shards import write_shard
from niblick.data.stream import Streaming, prepare_stream
from niblick.errors import DataError
from niblick.files import sha256_file
from niblick.text.bytetable import refuse_surrogates
from niblick.text.learning import TRAINED, train_tokenizer
from niblick.text.tokenizer import Tokenizer, load_tokenizer

_RECIPE_VERSION = "3"  # changes when the same inputs would give other shards
_VOCABULARY = 1024
SHARD_TOKENS = 100_000_000


class DataSettings(Protocol):
    """The part of a recipe that names the data."""

    @property
    def corpus(self) -> str: ...
    @property
    def tokenizer(self) -> str: ...
    @property
    def development(self) -> bool: ...
    @property
    def share(self) -> float: ...


def prepare(
    corpus: str | Path | Corpus,
    *,
    out: Path,
    tokenizer: str | Tokenizer = "train",
    vocab_size: int | None = None,
    shard_tokens: int = SHARD_TOKENS,
) -> Dataset:
    """Write `corpus` as shards of at most `shard_tokens` tokens into `out`, or reuse `out` if it
    holds them already.

    `tokenizer` is a name in `niblick.text.learning.TRAINED` (of exactly `vocab_size` ids, by
    default 1,024), "bytes", "fineweb-1024", the path of a `.model`, or a tokenizer. A corpus of
    more than 64 MB is streamed (`niblick.data.stream`). Raises `DataError`; a folder that this
    project did not write is never replaced.
    """
    out = place_of(out)
    if shard_tokens < 1:
        raise DataError(f"shards of {shard_tokens} tokens; at least 1 is needed")
    fixed = given_tokenizer(tokenizer, vocab_size)
    vocab_size = _VOCABULARY if vocab_size is None else vocab_size
    if not isinstance(corpus, Corpus) and str(corpus) not in corpora and is_large(corpus):
        settings = Streaming(
            tokenizer=str(tokenizer), vocab_size=vocab_size, shard_tokens=shard_tokens
        )
        made = prepare_stream(corpus, out, settings, fixed)
        assert isinstance(made, Dataset)
        return made
    loaded = corpus if isinstance(corpus, Corpus) else load_corpus(corpus)
    for split, texts in loaded.splits.items():
        for number, text in enumerate(texts):
            refuse_surrogates(text, f"{split} document {number}")
    key = _key(loaded, f"{tokenizer} {vocab_size}" if fixed is None else fixed.sha256, shard_tokens)
    if (present := reuse(out, key)) is not None:
        return present
    if fixed is None:
        texts = loaded.splits["train"]
        fixed = train_tokenizer(texts, vocab_size=vocab_size, **TRAINED[str(tokenizer)])
    return _build(loaded, fixed, shard_tokens, out, key)


def given_tokenizer(tokenizer: str | Tokenizer, vocab_size: int | None) -> Tokenizer | None:
    """The tokenizer that is named or given, None where one is to be trained; `DataError` where it
    has not `vocab_size` ids.
    """
    if isinstance(tokenizer, str):
        fixed = None if tokenizer in TRAINED else load_tokenizer(tokenizer)
    else:
        fixed = tokenizer
    if fixed is not None and vocab_size not in (None, fixed.vocab_size):
        raise DataError(f"tokenizer {fixed.name} has {fixed.vocab_size} ids, not {vocab_size}")
    return fixed


def _key(corpus: Corpus, tokenizer: str, shard_tokens: int) -> str:
    parts = (_RECIPE_VERSION, corpus.sha256(), tokenizer, str(shard_tokens))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _build(corpus: Corpus, tokenizer: Tokenizer, shard_tokens: int, out: Path, key: str) -> Dataset:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise DataError(f"cannot write beside {str(out)!r}: {error.strerror}") from None
    try:
        _fill(work, corpus, tokenizer, shard_tokens, key)
        return put_in_place(work, out, key)
    except OSError as error:
        raise DataError(f"cannot write {str(out)!r}: {error.strerror}") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _fill(folder: Path, corpus: Corpus, tokenizer: Tokenizer, shard_tokens: int, key: str) -> None:
    (folder / TOKENIZER_FILE).write_bytes(tokenizer.to_file_bytes())
    splits = {}
    for split in SPLITS:
        if texts := corpus.splits.get(split, ()):
            splits[split] = _write_split(folder, split, texts, tokenizer, shard_tokens)
    save_manifest(
        folder,
        tokenizer,
        key=key,
        corpus=corpus.name,
        corpus_sha256=corpus.sha256(),
        attribution=corpus.attribution,
        splits=splits,
    )


def _write_split(
    folder: Path, split: str, texts: Sequence[str], tokenizer: Tokenizer, shard_tokens: int
) -> SplitEntry:
    shards: list[ShardEntry] = []
    content, total = hashlib.sha256(), 0
    for chunk in _chunks(texts, tokenizer, shard_tokens):
        path = folder / shard_name(split, len(shards))
        write_shard(path, chunk)
        shards.append(ShardEntry(path.name, len(chunk), sha256_file(path)))
        content.update(chunk.tobytes())
        total += len(chunk)
    size = sum(len(text.encode()) for text in texts)
    return SplitEntry(len(texts), size, total, content.hexdigest(), tuple(shards))


def _chunks(texts: Sequence[str], tokenizer: Tokenizer, size: int) -> Iterator[NDArray[np.uint16]]:
    """The documents' tokens as one stream, cut every `size` tokens."""
    waiting: list[NDArray[np.uint16]] = []
    count = 0
    for text in texts:
        waiting.append(tokenizer.encode_counted(text).astype("<u2"))
        count += len(waiting[-1])
        while count >= size:
            joined = np.concatenate(waiting)
            yield joined[:size]
            waiting, count = [joined[size:]], count - size
    if count:
        yield np.concatenate(waiting)


def resolve_dataset(data: DataSettings, *, vocab_size: int, cache: Path) -> Dataset:
    """The dataset a recipe asks for: opened where `data.corpus` is a folder of shards, else
    prepared into `cache`.

    The tokenizer must have exactly the model's `vocab_size` ids; `DataError` says so otherwise.
    """
    fixed = None if data.tokenizer in TRAINED else load_tokenizer(data.tokenizer)
    if fixed is not None:
        _refuse_other_size(fixed, vocab_size)
    dataset = _open_or_prepare(data, fixed, vocab_size, cache)
    _refuse_other_size(dataset.tokenizer, vocab_size)
    return dataset


def _refuse_other_size(tokenizer: Tokenizer, vocab_size: int) -> None:
    if tokenizer.vocab_size != vocab_size:
        raise DataError(
            f"tokenizer {tokenizer.name} has {tokenizer.vocab_size} ids, "
            f"but the recipe's model.vocab_size is {vocab_size}"
        )


def _open_or_prepare(
    data: DataSettings, fixed: Tokenizer | None, vocab_size: int, cache: Path
) -> Dataset:
    path, whole = Path(data.corpus), data.share == 1 and not data.development
    if (
        data.corpus not in corpora
        and not data.corpus.startswith(HUB)
        and path.is_dir()
        and (any(path.glob("*.bin")) or manifests.load_manifest(path))
    ):
        if not whole:
            raise DataError(
                f"data.development and data.share choose documents of a corpus; {data.corpus!r}"
                " holds shards"
            )
        return open_dataset(path, fixed)
    tokenizer = f"{data.tokenizer}-{vocab_size}" if fixed is None else fixed.sha256[:12]
    place = (
        hashlib.sha256(_whole(data.corpus).encode()).hexdigest()[:12]
        if data.corpus not in corpora
        else ""
    )
    part = "" if data.share == 1 else f"share{data.share:g}"
    names = (path.name or "corpus", place, "development" * data.development, part, tokenizer)
    corpus = data.corpus if whole else _part(data)
    return prepare(
        corpus,
        out=cache / "-".join(filter(None, names)),
        tokenizer=data.tokenizer,
        vocab_size=vocab_size,
    )


def _whole(corpus: str) -> str:
    return corpus if corpus.startswith(HUB) else str(Path(corpus).resolve())


def _part(data: DataSettings) -> Corpus:
    """What `data.development` and `data.share` leave of the corpus."""
    if data.corpus not in corpora and is_large(data.corpus):
        raise DataError(
            f"data.development and data.share choose documents of a small corpus; {data.corpus!r}"
            " is streamed"
        )
    loaded = load_corpus(data.corpus)
    return training_part(loaded, development=data.development, share=data.share)
