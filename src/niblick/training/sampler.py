"""Which blocks make up which batch: a pure function of a seed, the shard sizes and the batch
number.

Each pass cuts every shard into blocks of T tokens at a random phase and visits them in the order
(start + j * stride) mod n with stride coprime to n, so every block comes once per pass. A batch
draws from a number of shards that grows over training, chosen without replacement in proportion to
(blocks left) ** alpha. Nothing depends on threads, ranks or time, so any batch can be reached again
by replaying the draws (no token is read).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from niblick.errors import DataError

Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Mix:
    """How many shards a batch draws from, and how flat their odds are, from the start to the end of
    training.
    """

    shards: tuple[float, float] = (8, 32)
    alpha: tuple[float, float] = (0.9, 0.5)

    def at(self, progress: float) -> tuple[int, float]:
        """(number of shards, alpha) at a share of training in [0, 1]."""
        first, last = self.shards
        start, end = self.alpha
        return max(1, round(first + (last - first) * progress)), start + (end - start) * progress


@dataclass(frozen=True)
class Rows:
    """The sequences of one batch: shard number and first token of each."""

    shards: Ints
    starts: Ints


class Sampler:
    """Draws batches of `batch` blocks of `length` tokens (each needs one token more, as the last
    target).

    `total` is the number of batches that training is planned to draw, over which the mix moves from
    its first to its last values; without it, it moves over the first pass. Raises `DataError` where
    no shard holds a block.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        length: int,
        batch: int,
        seed: int,
        mix: Mix,
        total: int | None = None,
    ) -> None:
        self._sizes = np.array(sizes, dtype=np.int64)
        self._length, self._batch, self._seed = length, batch, seed
        self._mix, self._total = mix, total
        self.batches = 0
        self.passes = 0
        if not len(self._sizes) or int(self._sizes.max()) < length + 1:
            raise DataError(
                f"training data of {int(self._sizes.sum())} tokens in {len(self._sizes)} shards is"
                f" too small: no shard holds one sequence of {length} tokens and its last target;"
                " use more text or shorter ones"
            )
        self._per_pass = int(((self._sizes - 1) // length).clip(0).sum())
        self._begin_pass()

    def _random(self, stream: int, number: int) -> np.random.Generator:
        return np.random.Generator(
            np.random.Philox(key=[self._seed & (2**64 - 1), stream << 56 | number])
        )

    def _begin_pass(self) -> None:
        """Choose phase, start and stride of every shard for pass number `self.passes`."""
        draws = self._random(1, self.passes).random((3, len(self._sizes)))
        usable = (self._sizes - 1).clip(0)
        slack = np.where(usable >= 2 * self._length, self._length, usable % self._length + 1)
        self._phase = (draws[0] * slack).astype(np.int64)
        self._blocks: Ints = (usable - self._phase) // self._length
        blocks = self._blocks.clip(1)
        self._start = (draws[1] * blocks).astype(np.int64)
        strides = [
            _coprime(int(wish * n), int(n)) for wish, n in zip(draws[2], blocks, strict=True)
        ]
        self._stride = np.array(strides, dtype=np.int64)
        self._visited = np.zeros_like(self._blocks)

    @property
    def pass_blocks(self) -> int:
        """Number of blocks in the current pass."""
        return int(self._blocks.sum())

    def _progress(self) -> float:
        whole = self._total if self._total is not None else self._per_pass / self._batch
        return min(1.0, self.batches / max(1.0, whole))

    def draw(self) -> Rows:
        """The next batch. Rows of one shard follow each other; a pass that ends inside a batch is
        followed by the next.
        """
        count, alpha = self._mix.at(self._progress())
        random = self._random(2, self.batches)
        wanted, parts = self._batch, []
        while wanted:
            if not (self._blocks - self._visited).any():
                self.passes += 1
                self._begin_pass()
            parts.append(self._draw_some(wanted, count, alpha, random))
            wanted -= len(parts[-1].shards)
        self.batches += 1
        return Rows(
            np.concatenate([p.shards for p in parts]), np.concatenate([p.starts for p in parts])
        )

    def _draw_some(
        self, wanted: int, count: int, alpha: float, random: np.random.Generator
    ) -> Rows:
        """At most `wanted` blocks from at most `count` shards of the current pass."""
        left = self._blocks - self._visited
        weights = np.where(left > 0, left.astype(np.float64) ** alpha, 0.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            keys = np.log(1.0 - random.random(len(left))) / weights
        keys[left == 0] = -np.inf
        count = min(count, int((left > 0).sum()), wanted)
        chosen = np.sort(np.argsort(-keys, kind="stable")[:count])
        takes = _share(wanted, weights[chosen], left[chosen])
        rows = [
            self._take(int(shard), int(take))
            for shard, take in zip(chosen, takes, strict=True)
            if take
        ]
        return Rows(np.repeat(chosen, takes), np.concatenate(rows))

    def _take(self, shard: int, count: int) -> Ints:
        """First tokens of the next `count` blocks of `shard`."""
        order = np.arange(self._visited[shard], self._visited[shard] + count)
        self._visited[shard] += count
        blocks = (self._start[shard] + order * self._stride[shard]) % self._blocks[shard]
        return np.asarray(self._phase[shard] + blocks * self._length, dtype=np.int64)

    def skip(self, batches: int) -> None:
        """Draw and forget `batches` batches."""
        for _ in range(batches):
            self.draw()


def _coprime(wish: int, n: int) -> int:
    """The first number from max(1, `wish`) on that shares no factor with `n`; it may exceed `n`."""
    stride = max(1, wish)
    while math.gcd(stride, n) != 1:
        stride += 1
    return stride


def _share(wanted: int, weights: NDArray[np.float64], left: Ints) -> Ints:
    """How many of `wanted` blocks each shard gives: by weight, never more than it has left, at
    least one.
    """
    takes: Ints = np.minimum(
        left, np.maximum(1, np.floor(wanted * weights / weights.sum()).astype(np.int64))
    )
    while (missing := min(wanted, int(left.sum())) - int(takes.sum())) > 0:
        room = np.flatnonzero(takes < left)
        order = room[np.argsort(-weights[room], kind="stable")]
        takes[order[:missing]] += 1
    while (excess := int(takes.sum()) - wanted) > 0:
        order = np.argsort(-takes, kind="stable")
        takes[order[: min(excess, int((takes > 1).sum()))]] -= 1
    return takes
