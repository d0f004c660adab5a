"""Batches in the background: shards in, (inputs, targets) out, in an order set by the seed alone.

The order does not depend on the number of workers or ranks, and a few integers (`state`) resume it
exactly. The rows of all ranks at one step are the rows one process would get. What fails in a
worker is raised by `next`. Blocks are read by position from files that stay on disk, so memory does
not grow with the number of shards and a shard that shrinks under a run is an error, not a crash.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from niblick.data.shards import ShardError, count_tokens, read_tokens
from niblick.errors import DataError
from niblick.training.documents import DocumentRows, Tokens
from niblick.training.sampler import Mix, Rows, Sampler

Batch = tuple[NDArray[np.int64], NDArray[np.int64]]


class Pipeline:
    """Endless batches of `batch_sequences` sequences of `sequence_length` tokens, shared between
    `world_size` ranks.

    `next()` gives this rank's share: inputs and targets of shape (batch_sequences / world_size,
    sequence_length), int64, targets one token further on. `workers` threads build up to `prefetch`
    batches ahead; with 0 workers each batch is built when asked for. `total_batches` is the planned
    length of training, over which the shard mix grows from `mix_start` to `mix_end` shards a batch
    and the exponent of the odds falls from `alpha_start` to `alpha_end`; without it they move over
    the first pass. `state` resumes where `state()` was taken. A token that is not below
    `vocab_size` is a `DataError` of the batch that it would be in. With `documents_from`, the id
    that begins a document, rows are packed of whole documents (`DocumentRows`), and such a token is
    refused at once.
    """

    def __init__(
        self,
        shards: Sequence[Path],
        *,
        sequence_length: int,
        batch_sequences: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 1,
        prefetch: int = 2,
        mix_start: float = 8,
        mix_end: float = 32,
        alpha_start: float = 0.9,
        alpha_end: float = 0.5,
        total_batches: int | None = None,
        vocab_size: int | None = None,
        documents_from: int | None = None,
        state: Mapping[str, int] | None = None,
    ) -> None:
        if (
            sequence_length < 1
            or batch_sequences < 1
            or batch_sequences % world_size
            or not 0 <= rank < world_size
        ):
            raise DataError(
                f"{batch_sequences} sequences of {sequence_length} tokens cannot be shared by rank"
                f" {rank} of {world_size}: the number of sequences must be a positive multiple of"
                " the number of ranks"
            )
        self._shards = tuple(shards)
        self._sizes = [count_tokens(path) for path in self._shards]
        self._length, self._sequences = sequence_length, batch_sequences
        self._seed, self._rank, self._world, self._words = seed, rank, world_size, vocab_size
        self._total = (
            total_batches
            if state is None or state.get("total_batches", -1) < 0
            else state["total_batches"]
        )
        mix = Mix(shards=(mix_start, mix_end), alpha=(alpha_start, alpha_end))
        rows = {"length": sequence_length, "batch": batch_sequences, "seed": seed}
        self._documents_from = documents_from
        self._sampler: Sampler | DocumentRows = (
            Sampler(self._sizes, **rows, mix=mix, total=self._total)
            if documents_from is None
            else DocumentRows(
                self._shards, self._sizes, **rows, bos_id=documents_from, vocab_size=vocab_size
            )
        )
        self._refuse_small_data()
        self._batches = self._passes = 0
        self._ahead = max(1, prefetch)
        self._pool = ThreadPoolExecutor(workers, "niblick-data") if workers else None
        self._waiting: deque[tuple[Future[Batch], int]] = deque()
        self._closed = False
        self.wait_seconds = 0.0
        if state is not None:
            self._restore(state)

    def _refuse_small_data(self) -> None:
        held = self._sampler.pass_blocks
        if held < self._sequences:
            raise DataError(
                f"training data of {sum(self._sizes):,} tokens holds {held} sequences of"
                f" {self._length} tokens, fewer than one batch of {self._sequences}; use more text,"
                " shorter sequences or smaller batches"
            )

    def _identity(self) -> dict[str, int]:
        total = -1 if self._total is None else self._total
        packed = {} if self._documents_from is None else {"documents_from": self._documents_from}
        return {
            "seed": self._seed,
            "sequence_length": self._length,
            "batch_sequences": self._sequences,
            "total_batches": total,
            "shards": len(self._sizes),
            "shard_tokens": sum(self._sizes),
            **packed,
        }

    def state(self) -> dict[str, int]:
        """What resumes the stream after the last batch that `next` gave."""
        return {"batches": self._batches, **self._identity()}

    def _restore(self, state: Mapping[str, int]) -> None:
        own = self._identity()
        for key in {**own, **state}:
            if key not in ("batches", "total_batches") and state.get(key) != own.get(key):
                raise DataError(
                    f"the data cannot be resumed: {key} is {own.get(key)}, in the saved state"
                    f" {state.get(key)}"
                )
        self._batches = state["batches"]
        self._sampler.skip(self._batches)
        self._passes = self._sampler.passes

    @property
    def passes(self) -> int:
        """Whole passes over the training data before the last batch's end."""
        return self._passes

    @property
    def tokens_seen(self) -> int:
        """Input tokens given out so far, over all ranks."""
        return self._batches * self._sequences * self._length

    def next(self) -> Batch:
        """The next batch of this rank; raises what went wrong in building it, and is closed from
        then on.
        """
        if self._closed:
            raise DataError("the data pipeline is closed")
        began = time.perf_counter()
        try:
            batch, self._passes = (
                self._build_now() if self._pool is None else self._from_pool(self._pool)
            )
        except BaseException:
            self.close()
            raise
        self._batches += 1
        self.wait_seconds += time.perf_counter() - began
        return batch

    def _build_now(self) -> tuple[Batch, int]:
        return self._assemble(self._sampler.draw()), self._sampler.passes

    def _from_pool(self, pool: ThreadPoolExecutor) -> tuple[Batch, int]:
        while len(self._waiting) <= self._ahead:
            self._waiting.append(
                (pool.submit(self._assemble, self._sampler.draw()), self._sampler.passes)
            )
        future, passes = self._waiting.popleft()
        return future.result(), passes

    def _assemble(self, rows: Rows | Tokens) -> Batch:
        """Read this rank's rows; blocks that lie side by side in a shard are read as one."""
        if not isinstance(rows, Rows):
            mine = rows[self._rank :: self._world]
            return np.ascontiguousarray(mine[:, :-1]), np.ascontiguousarray(mine[:, 1:])
        shards, starts = (
            rows.shards[self._rank :: self._world],
            rows.starts[self._rank :: self._world],
        )
        inputs = np.empty((len(shards), self._length), dtype=np.int64)
        targets = np.empty_like(inputs)
        order = np.lexsort((starts, shards))
        joins = (np.diff(shards[order]) == 0) & (np.diff(starts[order]) == self._length)
        for shard in set(shards.tolist()):
            self._check_unchanged(shard)
        for run in np.split(order, np.flatnonzero(~joins) + 1):
            start, path = int(starts[run[0]]), self._shards[int(shards[run[0]])]
            span = read_tokens(path, start, len(run) * self._length + 1)
            if self._words is not None and span.max() >= self._words:
                raise DataError(
                    f"{path} holds token {span.max()} near {start}, but the vocabulary has"
                    f" {self._words}"
                )
            inputs[run] = span[:-1].reshape(len(run), self._length)
            targets[run] = span[1:].reshape(len(run), self._length)
        return inputs, targets

    def _check_unchanged(self, shard: int) -> None:
        found = count_tokens(self._shards[shard])
        if found != self._sizes[shard]:
            raise ShardError(
                f"shard {str(self._shards[shard])!r} changed while it was read: {found:,} tokens, "
                f"{self._sizes[shard]:,} before"
            )

    def __iter__(self) -> Iterator[Batch]:
        while True:
            yield self.next()

    def close(self) -> None:
        """Stop the workers; safe to call twice."""
        self._closed = True
        self._waiting.clear()
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
