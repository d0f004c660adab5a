"""The manifest of a prepared dataset: its sources, and what each of its files must hold."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from niblick.errors import DataError
from niblick.files import read_json, record, write_atomically
from niblick.limits import cut, quoted

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
    """One split: its documents, UTF-8 bytes and tokens, and the SHA-256 of its tokens."""

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
    """The manifest of `folder`, None where it has none of ours; `DataError` where it is damaged."""
    path = folder / FILE_NAME
    if not path.is_file():
        return None
    document = read_json(path)
    if document.pop("format", None) != _FORMAT:
        return None
    if (version := document.pop("version", None)) != _VERSION:
        raise DataError(
            f"{str(path)!r} has version {quoted(version)}; this release reads version {_VERSION}"
        )
    try:
        splits = _object(document.pop("splits", None))
        for name in splits:
            if name not in ("train", "validation", "test"):
                raise ValueError(f"it has a split {quoted(name)}")
        entries = {name: _split(_object(entry)) for name, entry in splits.items()}
        manifest = record(Manifest, document, splits=entries)
        _refuse_outside(manifest.tokenizer_file)
        return manifest
    except ValueError as error:
        raise DataError(
            f"{str(path)!r} is damaged ({cut(error, 120)}); prepare the data again"
        ) from None


def _object(value: Any) -> dict[str, Any]:
    if type(value) is not dict:
        raise ValueError(f"{quoted(value)} is not an object")
    return value


def _split(entry: dict[str, Any]) -> SplitEntry:
    shards = entry.pop("shards", None)
    if type(shards) is not list:
        raise ValueError("a split lists no shards")
    found = tuple(record(ShardEntry, _object(shard)) for shard in shards)
    for shard in found:
        _refuse_outside(shard.file)
    return record(SplitEntry, entry, shards=found)


def _refuse_outside(name: str) -> None:
    if Path(name).name != name:
        raise ValueError(f"it names {quoted(name)}, which is not in its own folder")
