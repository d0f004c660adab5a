"""Is a folder of shards sound? Headers, sizes, hashes, counts, ids, bytes, and separate splits.

The byte accounting is compared with the tokenizer library's own decoding, which knows nothing of
our table. Very large training splits are sampled for that one check; the report says how many
documents it covered.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from niblick.data import manifest as manifests
from niblick.data.dataset import Dataset, find_files, open_dataset
from niblick.data.shards import count_tokens
from niblick.errors import DataError
from niblick.files import sha256_file
from niblick.text.tokenizer import Tokenizer

_ACCOUNTED_TOKENS = 20_000_000


@dataclass
class SplitReport:
    """What a split holds; the bytes of `accounted` documents were compared with their text."""

    documents: int = 0
    tokens: int = 0
    bytes: int = 0
    accounted: int = 0


@dataclass
class CheckReport:
    """The findings on one folder; it is sound when `problems` is empty."""

    folder: str
    tokenizer: str = ""
    splits: dict[str, SplitReport] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        """The report as a JSON object."""
        return {"ok": self.ok, **asdict(self)}


def check(folder: Path | str, tokenizer: Tokenizer | None = None) -> CheckReport:
    """Examine every shard in `folder`; what is wrong is listed, not raised."""
    report = CheckReport(str(folder))
    _check_files(Path(folder), report)
    if report.problems:
        return report
    try:
        dataset = open_dataset(folder, tokenizer)
        report.tokenizer = dataset.tokenizer.name
        for split in dataset.files:
            _check_split(dataset, split, report)
        if report.ok:
            _check_separation(dataset, report)
    except DataError as error:
        report.problems.append(str(error))
    return report


def _check_files(folder: Path, report: CheckReport) -> None:
    """Headers and sizes of all shards, and the manifest's hashes."""
    try:
        manifest = manifests.load_manifest(folder) if folder.is_dir() else None
    except DataError as error:
        report.problems.append(str(error))
        return
    if manifest is None:
        _collect(report, [path for paths in find_files(folder).values() for path in paths])
        return
    entries = [shard for split in manifest.splits.values() for shard in split.shards]
    _collect(report, [folder / shard.file for shard in entries])
    for shard in entries:
        path = folder / shard.file
        if path.is_file() and sha256_file(path) != shard.sha256:
            report.problems.append(
                f"shard {shard.file} has changed since it was prepared (SHA-256 differs)"
            )


def _collect(report: CheckReport, paths: list[Path]) -> None:
    for path in paths:
        try:
            count_tokens(path)
        except DataError as error:
            report.problems.append(str(error))


def _check_split(dataset: Dataset, split: str, report: CheckReport) -> None:
    """Ids, byte accounting and the manifest's counts of one split."""
    found = report.splits[split] = SplitReport(tokens=dataset.token_count(split))
    every = 1 if split != "train" else -(-found.tokens // _ACCOUNTED_TOKENS) or 1
    table, size = dataset.tokenizer.byte_table, dataset.tokenizer.vocab_size
    for number, tokens in enumerate(dataset.document_tokens(split)):
        found.documents += 1
        if (highest := int(tokens.max())) >= size:
            report.problems.append(
                f"{split} document {number} holds token id {highest}; the vocabulary has {size}"
            )
            return
        before = np.concatenate([[dataset.tokenizer.bos_id], tokens[:-1]])
        counted = int(table.count(tokens, before).sum())
        found.bytes += counted
        if number % every == 0:
            found.accounted += 1
            _check_bytes(dataset, split, number, tokens, counted, report)
    _check_counts(dataset, split, found, report)


def _check_bytes(
    dataset: Dataset,
    split: str,
    number: int,
    tokens: NDArray[np.uint16],
    counted: int,
    report: CheckReport,
) -> None:
    ids = tokens.tolist()
    try:
        dataset.tokenizer.decode_bytes(ids).decode("utf-8")
    except UnicodeDecodeError:
        if ids[0] != dataset.tokenizer.bos_id or dataset.manifest is None:
            # a stream that was cut mid-document, as the challenge's are, may begin or end inside a
            # character
            return
        report.problems.append(f"{split} document {number} does not decode to valid UTF-8")
        return
    decoded = len(dataset.tokenizer.reference_decode(ids).encode())
    if decoded != counted:
        report.problems.append(
            f"{split} document {number}: its tokens count {counted} bytes, its decoded text has"
            f" {decoded}"
        )


def _check_counts(dataset: Dataset, split: str, found: SplitReport, report: CheckReport) -> None:
    if dataset.manifest is None:
        return
    entry = dataset.manifest.splits[split]
    if dataset.sha256(split) != entry.sha256:
        report.problems.append(f"{split} holds other tokens than the manifest's SHA-256 says")
    expected = {"documents": entry.documents, "tokens": entry.tokens}
    if dataset.tokenizer.lossless:
        expected["bytes"] = entry.bytes
    for name, value in expected.items():
        if getattr(found, name) != value:
            report.problems.append(
                f"{split} has {getattr(found, name):,} {name}; the manifest says {value:,}"
            )


def _check_separation(dataset: Dataset, report: CheckReport) -> None:
    """No document may be in two splits; the held-out ones are named."""
    seen: dict[bytes, str] = {}
    for split in ("test", "validation", "train"):
        repeated = 0
        own: dict[bytes, str] = {}
        for tokens in dataset.document_tokens(split) if split in dataset.files else ():
            content = hashlib.sha256(tokens.tobytes()).digest()
            repeated += content in seen
            if split != "train":
                own[content] = split
        seen.update(own)
        if repeated:
            report.problems.append(f"{repeated} {split} documents are also in a held-out split")
