"""A folder of shards with its tokenizer: what training and evaluation read.

Two kinds of folder open alike: one that `prepare` wrote, with a manifest, and a bare one in the
challenge's layout (`*_train_*.bin`, `*_val_*.bin`). Shard headers and sizes are verified when a
folder opens, so a truncated shard or a tokenizer that is not the shards' own is an error before any
work begins.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from niblick.data import manifest as manifests
from niblick.data.manifest import Manifest
from niblick.data.shards import ShardError, count_tokens, open_shard
from niblick.errors import DataError
from niblick.limits import quoted
from niblick.text.tokenizer import CHALLENGE, Tokenizer, load_tokenizer

_BARE_NAMES = {"train": "*_train_*.bin", "validation": "*_val_*.bin", "test": "*_test_*.bin"}


@dataclass(frozen=True)
class Dataset:
    """Shards by split, and the tokenizer they were written with; `manifest` is None for a bare
    folder.
    """

    folder: Path
    tokenizer: Tokenizer
    manifest: Manifest | None
    files: Mapping[str, tuple[Path, ...]]

    @property
    def name(self) -> str:
        """The corpus by name, or the folder's name."""
        return self.manifest.corpus if self.manifest else self.folder.name

    @property
    def attribution(self) -> str:
        """Credit the corpus asks for; empty where none is known."""
        return self.manifest.attribution if self.manifest else ""

    def shards(self, split: str) -> tuple[Path, ...]:
        """Shard files of `split` in order; `DataError` where the dataset has no such split."""
        if not self.files.get(split):
            found = ", ".join(name for name, paths in self.files.items() if paths) or "none"
            raise DataError(
                f"data in {str(self.folder)!r} has no {split!r} split; it has: {found}. One"
                " document in 20 is held out by its hash: give more text, or sort it into folders"
                " train, validation and test"
            )
        return self.files[split]

    def tokens(self, split: str) -> NDArray[np.uint16]:
        """All tokens of `split`: a memory map for one shard, a copy in memory for several."""
        maps = [open_shard(path) for path in self.shards(split)]
        tokens = maps[0] if len(maps) == 1 else np.concatenate(maps)
        if len(tokens) and int(tokens.max()) >= self.tokenizer.vocab_size:
            raise DataError(
                f"{split} shards in {str(self.folder)!r} hold token id {int(tokens.max())}, outside"
                f" the vocabulary of {self.tokenizer.vocab_size}; they were written with another"
                " tokenizer"
            )
        return tokens

    def rows(self, split: str, starts: Sequence[int], length: int) -> NDArray[np.uint16]:
        """`length` tokens from each of `starts`, positions in the whole of `split`; only these are
        read.
        """
        maps = [open_shard(path) for path in self.shards(split)]
        firsts = np.cumsum([0, *map(len, maps)])
        rows = np.empty((len(starts), length), dtype=np.uint16)
        for row, start in zip(rows, starts, strict=True):
            if not 0 <= start <= firsts[-1] - length:
                raise DataError(
                    f"{length} tokens from {start} are outside the {firsts[-1]:,} of split"
                    f" {split!r}"
                )
            filled = 0
            while filled < length:
                shard = int(np.searchsorted(firsts, start + filled, side="right")) - 1
                part = maps[shard][start + filled - firsts[shard] :][: length - filled]
                row[filled : filled + len(part)] = part
                filled += len(part)
        return rows

    def token_count(self, split: str) -> int:
        """Number of tokens in `split`, from the headers."""
        return sum(map(count_tokens, self.shards(split)))

    def sha256(self, split: str) -> str:
        """Hash of the tokens of `split` as little-endian uint16, however they are cut into
        shards.
        """
        digest = hashlib.sha256()
        for path in self.shards(split):
            digest.update(open_shard(path).tobytes())
        return digest.hexdigest()

    def documents(self, split: str) -> Iterator[tuple[int, int]]:
        """(start, end) of each document in `tokens(split)`, its BOS included."""
        tokens = self.tokens(split)
        starts = np.flatnonzero(tokens == self.tokenizer.bos_id)
        if len(tokens) and (not len(starts) or starts[0]):
            starts = np.concatenate([[0], starts])
        ends = np.concatenate([starts[1:], [len(tokens)]])
        yield from zip(starts.tolist(), ends.tolist(), strict=True)

    def document_tokens(self, split: str) -> Iterator[NDArray[np.uint16]]:
        """The tokens of each document of `split`, BOS included, one shard in memory at a time."""
        rest = np.empty(0, dtype=np.uint16)
        for path in self.shards(split):
            tokens = np.concatenate([rest, open_shard(path)])
            starts = np.flatnonzero(tokens == self.tokenizer.bos_id)
            starts = starts[starts > 0]
            *whole, rest = np.split(tokens, starts)
            yield from whole
        if len(rest):
            yield rest

    def texts(self, split: str) -> Iterator[str]:
        """The decoded text of each document of `split`."""
        return (self.tokenizer.decode(tokens.tolist()) for tokens in self.document_tokens(split))


def open_dataset(folder: Path | str, tokenizer: Tokenizer | None = None) -> Dataset:
    """Open a folder of shards; `tokenizer`, where given, must be the one the shards were written
    with.

    A bare folder's tokenizer is a single `.model` in it or in a `tokenizers` folder beside its
    parent (the challenge's layout), else the challenge's own. Raises `DataError`.
    """
    folder = Path(folder)
    if not folder.is_dir():
        there = "no shards" if folder.exists() else "neither shards nor a text"
        raise DataError(f"{there} at {str(folder)!r}")
    manifest = manifests.load_manifest(folder)
    dataset = (
        _open_bare(folder, tokenizer) if manifest is None else _open_prepared(folder, manifest)
    )
    if (
        manifest is not None
        and tokenizer is not None
        and tokenizer.sha256 != dataset.tokenizer.sha256
    ):
        raise DataError(
            f"data in {str(folder)!r} was written with tokenizer {dataset.tokenizer.name} "
            f"({dataset.tokenizer.sha256[:12]}), not {tokenizer.name} ({tokenizer.sha256[:12]})"
        )
    return dataset


def _open_prepared(folder: Path, manifest: Manifest) -> Dataset:
    tokenizer = load_tokenizer(folder / manifest.tokenizer_file)
    for name, found, said in (
        ("SHA-256", tokenizer.sha256, manifest.tokenizer_sha256),
        ("vocab_size", tokenizer.vocab_size, manifest.vocab_size),
        ("bos_id", tokenizer.bos_id, manifest.bos_id),
        ("lossless", tokenizer.lossless, manifest.lossless),
    ):
        if found != said:
            raise DataError(
                f"the tokenizer in {str(folder)!r} is not the one of its manifest: its {name} is"
                f" {found}, not {quoted(said)}; prepare the data again"
            )
    files = {}
    for split, entry in manifest.splits.items():
        files[split] = tuple(folder / shard.file for shard in entry.shards)
        for shard in entry.shards:
            found = count_tokens(folder / shard.file)
            if found != shard.tokens:
                raise ShardError(
                    f"shard {shard.file} has {found:,} tokens; the manifest says {shard.tokens:,}"
                )
    return Dataset(folder, tokenizer, manifest, files)


def _open_bare(folder: Path, tokenizer: Tokenizer | None) -> Dataset:
    files = find_files(folder)
    if not files:
        raise DataError(
            f"{str(folder)!r} holds neither a manifest nor shards named *_train_*.bin or"
            " *_val_*.bin"
        )
    dataset = Dataset(folder, tokenizer or _bare_tokenizer(folder), None, files)
    for path in (path for paths in files.values() for path in paths):
        count_tokens(path)
    for split, paths in files.items():
        _check_first_tokens(dataset, split, paths[0])
    return dataset


def find_files(folder: Path) -> dict[str, tuple[Path, ...]]:
    """The shards of a bare folder by split, told apart by their names."""
    files = {split: tuple(sorted(folder.glob(pattern))) for split, pattern in _BARE_NAMES.items()}
    return {split: paths for split, paths in files.items() if paths}


def _check_first_tokens(dataset: Dataset, split: str, path: Path) -> None:
    head = open_shard(path)[:1_000_000]
    size = dataset.tokenizer.vocab_size
    if len(head) and int(head.max()) >= size:
        raise DataError(
            f"{split} shard {str(path)!r} holds token id {int(head.max())}, outside tokenizer "
            f"{dataset.tokenizer.name} of {size}; name the tokenizer it was written with"
        )


def tokenizer_pattern(folder_name: str) -> str:
    """What the tokenizer of a folder such as `fineweb10B_sp1024` is called in the challenge's
    layout.
    """
    match = re.search(r"_sp(\d+)(\w*)$", folder_name)
    return f"*_{match[1]}_bpe{match[2]}.model" if match else "no tokenizer"


def _bare_tokenizer(folder: Path) -> Tokenizer:
    if "byte260" in folder.name:
        return load_tokenizer("bytes")
    beside = folder.parent.parent / "tokenizers"
    for place, pattern in ((folder, "*.model"), (beside, tokenizer_pattern(folder.name))):
        found = sorted(place.glob(pattern)) if place.is_dir() else []
        if len(found) == 1:
            return load_tokenizer(found[0])
    return load_tokenizer(CHALLENGE)
