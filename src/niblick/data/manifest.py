"""The manifest of a prepared dataset: what it was made from, and what each of its files must
hold.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from niblick.errors import DataError
from niblick.files import read_json, write_atomically

FILE_NAME = "manifest.json"
_FORMAT, _VERSION = "niblick-shards", 1


@dataclass(frozen=True)
class ShardEntry:
    """One shard file: its name, number of tokens, and the SHA-256 of its bytes."""

    file: str
    tokens: int
    sha256: str


@dataclass(frozen=True)
class SplitEntry:
    """One split: counts of documents, UTF-8 bytes and tokens, and the SHA-256 of its token
    content.
    """

    documents: int
    bytes: int
    tokens: int
    sha256: str
    shards: tuple[ShardEntry, ...]


@dataclass(frozen=True)
class Manifest:
    """What `niblick data prepare` wrote, and from what; `key` identifies the inputs."""

    key: str
    corpus: str
    corpus_sha256: str
    attribution: str
    tokenizer_file: str
    tokenizer_sha256: str
    vocab_size: int
    bos_id: int
    lossless: bool
    splits: dict[str, SplitEntry]

    def save(self, folder: Path) -> None:
        """Write the manifest into `folder`, atomically."""
        document = {"format": _FORMAT, "version": _VERSION, **asdict(self)}
        write_atomically(folder / FILE_NAME, (json.dumps(document, indent=1).encode() + b"\n",))


def load_manifest(folder: Path) -> Manifest | None:
    """The manifest of `folder`, None where it has none of ours; `DataError` where ours is
    damaged.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        return None
    document = read_json(path)
    if document.pop("format", None) != _FORMAT:
        return None
    if (version := document.pop("version", None)) != _VERSION:
        raise DataError(
            f"{str(path)!r} has version {version!r}; this release reads version {_VERSION}"
        )
    try:
        splits = {name: _split(entry) for name, entry in document.pop("splits").items()}
        return Manifest(**document, splits=splits)
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{str(path)!r} is damaged ({error}); prepare the data again") from None


def _split(entry: dict[str, Any]) -> SplitEntry:
    shards = tuple(ShardEntry(**shard) for shard in entry.pop("shards"))
    if any(Path(shard.file).name != shard.file for shard in shards):
        raise DataError("the manifest names a shard outside its own folder; prepare the data again")
    return SplitEntry(**entry, shards=shards)
