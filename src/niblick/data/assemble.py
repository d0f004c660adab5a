"""Shards from the runs of `niblick.data.spill`, each one apart from the others, and the manifest's
counts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from niblick.data.manifest import ShardEntry, SplitEntry
from niblick.data.output import shard_name
from niblick.data.shards import HEADER_BYTES, shard_header
from niblick.data.spill import Run, count_bins, read_in_order
from niblick.files import read_json, write_atomically

_CHUNK = 1 << 24  # bytes hashed at once


@dataclass(frozen=True)
class ShardJob:
    """One shard for one worker: tokens `start` to `end` of a split."""

    work: str
    units: int
    split: int
    name: str
    start: int
    end: int


@dataclass(frozen=True)
class Sums:
    """What the units say together: the runs, and for each split bytes and a hash of its
    documents that does not depend on their order.
    """

    runs: tuple[Run, ...]
    bytes: tuple[int, ...]
    digests: tuple[str, ...]

    def documents(self, split: int) -> int:
        """Documents of a split."""
        return sum(run.documents[split] for run in self.runs)

    def sha256(self) -> str:
        """Hash of which documents each split holds, whatever their order."""
        rows = [f"{self.documents(i)} {digest}" for i, digest in enumerate(self.digests)]
        return hashlib.sha256("\n".join(rows).encode()).hexdigest()


@cache
def sum_units(work: str, units: int) -> Sums:
    """What all units of a preparation have left in its folder; `DataError` where a run is gone."""
    folder = Path(work) / "units"
    found = [read_json(folder / f"{number:06d}.json") for number in range(units)]
    runs = [
        Run(str(folder / run["name"]), tuple(run["documents"]), int(run["tokens"]))
        for unit in found
        for run in unit["runs"]
    ]
    for run in runs:
        run.check()
    digests = (sum(int(unit["digests"][split], 16) for unit in found) for split in range(3))
    return Sums(
        tuple(runs),
        tuple(sum(unit["bytes"][split] for unit in found) for split in range(3)),
        tuple(f"{digest % (1 << 256):064x}" for digest in digests),
    )


def plan_shards(work: Path, units: int, split: int, name: str, shard_tokens: int) -> list[ShardJob]:
    """The shards of a split; where its documents lie is written down for those who make them."""
    counts = count_bins(sum_units(str(work), units).runs, split)
    write_atomically(work / f"bins-{split}", (counts.tobytes(),), durable=False)
    total = int(counts.sum())
    return [
        ShardJob(
            str(work),
            units,
            split,
            shard_name(name, number),
            start,
            min(start + shard_tokens, total),
        )
        for number, start in enumerate(range(0, total, shard_tokens))
    ]


def make_shard(job: ShardJob) -> ShardEntry:
    """Write one shard into the folder `data`, unless it has been; its entry in the manifest."""
    work = Path(job.work)
    note = work / "shards" / f"{job.name}.json"
    if not note.exists():
        counts = np.frombuffer((work / f"bins-{job.split}").read_bytes(), dtype=np.int64)
        digest = hashlib.sha256()
        write_atomically(work / "data" / job.name, _content(job, counts, digest))
        entry = {"tokens": job.end - job.start, "sha256": digest.hexdigest()}
        write_atomically(note, (json.dumps(entry).encode(),), durable=False)
    found = read_json(note)
    return ShardEntry(job.name, int(found["tokens"]), str(found["sha256"]))


def _content(job: ShardJob, counts: NDArray[np.int64], digest: Any) -> Iterator[bytes]:
    """The bytes of a shard, of which `digest` is told."""
    runs = sum_units(job.work, job.units).runs
    header = shard_header(job.end - job.start)
    digest.update(header)
    yield header
    for tokens in read_in_order(runs, job.split, counts, job.start, job.end):
        data = tokens.astype("<u2", copy=False).tobytes()
        digest.update(data)
        yield data


def split_entry(work: Path, sums: Sums, split: int, shards: Sequence[ShardEntry]) -> SplitEntry:
    """A split's entry in the manifest; its tokens are hashed as one stream."""
    digest = hashlib.sha256()
    for shard in shards:
        with (work / "data" / shard.file).open("rb") as file:
            file.seek(HEADER_BYTES)
            while data := file.read(_CHUNK):
                digest.update(data)
    return SplitEntry(
        sums.documents(split),
        sums.bytes[split],
        sum(shard.tokens for shard in shards),
        digest.hexdigest(),
        tuple(shards),
    )
