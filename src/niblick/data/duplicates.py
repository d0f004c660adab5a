"""Exact and near duplicates among documents: MinHash over byte shingles, compared in bands.

A document's shingles are all runs of 16 bytes of its text in lower case with spaces collapsed. One
hash of each falls into one of 128 bins, whose smallest values are the signature (one permutation
hashing: Li, Owen and Zhang 2012; empty bins borrow from the next: Shrivastava and Li 2014). Two
documents whose signatures agree in one of 32 bands of four bins and in half of all bins share about
half of their shingles or more, and count as near duplicates.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_SHINGLE, _BINS, _BAND = 16, 128, 4
_ALIKE = 0.5  # part of the bins that near duplicates share
_FEWEST = 64  # shingles of a document, below which only its exact text counts
_PIECE = 1 << 20  # bytes hashed at once
_FACTOR, _MIX = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD6E8FEB86659FD93)
_EMPTY = np.uint64(2**64 - 1)
Signature = NDArray[np.uint64]


def group_duplicates(texts: Sequence[str]) -> list[int]:
    """For each text the number of its group: equal for duplicates, near ones and chains of them."""
    groups = _Groups(len(texts))
    exact: dict[bytes, int] = {}
    signatures: dict[int, Signature] = {}
    for number, text in enumerate(texts):
        data = " ".join(text.lower().split()).encode("utf-8", "surrogatepass")
        first = exact.setdefault(hashlib.sha256(data).digest(), number)
        groups.join(first, number)
        if first == number and len(data) >= _SHINGLE + _FEWEST - 1:
            signatures[number] = signature(data)
    seen: dict[tuple[int, bytes], int] = {}
    for number, found in signatures.items():
        for band in range(0, _BINS, _BAND):
            other = seen.setdefault((band, found[band : band + _BAND].tobytes()), number)
            if groups.root(other) != groups.root(number) and (
                np.mean(found == signatures[other]) >= _ALIKE
            ):
                groups.join(other, number)
    return [groups.root(number) for number in range(len(texts))]


def signature(data: bytes) -> Signature:
    """The MinHash signature (128,) of `data`, which has at least 16 bytes."""
    smallest = np.full(_BINS, _EMPTY, dtype=np.uint64)
    for start in range(0, len(data) - _SHINGLE + 1, _PIECE):
        hashes = _hashes(data[start : start + _PIECE + _SHINGLE - 1])
        bins = (hashes >> np.uint64(57)).astype(np.intp)
        np.minimum.at(smallest, bins, hashes)
    for _ in range(_BINS):
        if not (empty := smallest == _EMPTY).any():
            break
        smallest[empty] = np.roll(smallest, -1)[empty]
    return smallest


def _hashes(data: bytes) -> NDArray[np.uint64]:
    """A 64-bit hash of each run of 16 bytes."""
    values = np.frombuffer(data, dtype=np.uint8).astype(np.uint64)
    count = len(values) - _SHINGLE + 1
    hashes = np.zeros(count, dtype=np.uint64)
    for offset in range(_SHINGLE):
        hashes *= _FACTOR
        hashes += values[offset : offset + count] + np.uint64(1)
    hashes ^= hashes >> np.uint64(32)
    hashes *= _MIX
    hashes ^= hashes >> np.uint64(32)
    return hashes * _MIX


class _Groups:
    """Disjoint sets of numbers; the root of each is its smallest member."""

    def __init__(self, count: int) -> None:
        self._above = list(range(count))

    def root(self, number: int) -> int:
        while self._above[number] != number:
            self._above[number] = self._above[self._above[number]]
            number = self._above[number]
        return number

    def join(self, a: int, b: int) -> None:
        low, high = sorted((self.root(a), self.root(b)))
        self._above[high] = low
