"""Where blocks of memory lie in one arena, given from when to when each is needed."""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass

ALIGNMENT = 64  # bytes, a cache line


@dataclass
class Block:
    """`size` bytes, needed from moment `first` to moment `last`, both included."""

    size: int
    first: int
    last: int


def place(blocks: Sequence[Block]) -> tuple[list[int], int]:
    """Offsets of the blocks and the arena's size, in bytes; blocks needed at the same moment do not
    overlap.

    The largest are placed first, each at the lowest free offset (Pisarchyk and Lee 2020, greedy by
    size).
    """
    offsets = [0] * len(blocks)
    placed: list[tuple[int, int, Block]] = []  # start, end
    for index in sorted(range(len(blocks)), key=lambda i: (-blocks[i].size, blocks[i].first)):
        block, at = blocks[index], 0
        size = -(-block.size // ALIGNMENT) * ALIGNMENT
        for start, end, other in placed:
            if other.first > block.last or other.last < block.first:
                continue
            if start >= at + size:
                break
            at = max(at, end)
        offsets[index] = at
        insort(placed, (at, at + size, block), key=lambda each: each[0])
    return offsets, max((end for _, end, _ in placed), default=0)
