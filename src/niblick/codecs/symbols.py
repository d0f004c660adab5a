"""Entropy coding of integers with constriction: adaptive frequency tables over an ANS stream.

A symbol's table is named by its kind. A table starts from a law built by integer arithmetic and
adds what was coded, block by block; it is rebuilt only once it has grown by an eighth, so encoder
and decoder stay in step and both are fast. Magnitudes beyond a table's limit are an escape, their
excess is coded in Elias gamma beside it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from niblick.codecs.fixed import prior
from niblick.codecs.quantized import Tensor, dequantized
from niblick.errors import ArtifactError, NiblickError

Ints = NDArray[np.int64]
_WEIGHT, _LARGEST_TOTAL, _LONGEST_ESCAPE = 40, 1 << 21, 30  # the last in bits


def _stream() -> Any:
    """constriction's module of that name; the compiled decoder does without it."""
    try:
        import constriction
    except ModuleNotFoundError:
        raise NiblickError(
            "coding weights, or decoding them without the native library, needs constriction,"
            " which is not installed; run: pip install constriction"
        ) from None
    return constriction.stream


def prior_weight(mean: int) -> int:
    """What the counts that a table starts from sum to."""
    return 16 * (_WEIGHT + mean // 64)


@cache
def _prior(mean: int, limit: int) -> NDArray[np.int64]:
    return prior(mean, limit, prior_weight(mean))


@dataclass
class Table:
    """Adaptive counts of the symbols -limit..limit and of the escape (last)."""

    limit: int
    counts: NDArray[np.int64]
    total: int
    fresh: int = 0
    _model: Any = None
    _bits: NDArray[np.float64] | None = field(default=None, repr=False)

    @classmethod
    def start(cls, mean: int, limit: int) -> Table:
        """A law of expected magnitude `mean` / 256, worth a few dozen symbols."""
        counts = np.append(_prior(mean, limit), 1)
        return cls(limit, counts, int(counts.sum()))

    @property
    def model(self) -> Any:
        """The constriction model of the counts as they were when last rebuilt."""
        if self._model is None or self.fresh * 8 > self.total:
            self._rebuild()
        return self._model

    @property
    def bits(self) -> NDArray[np.float64]:
        """Price of each symbol in bits under `model`."""
        if self._bits is None:
            self._rebuild()
        assert self._bits is not None
        return self._bits

    def learn(self, indices: NDArray[Any]) -> Ints:
        """Count coded symbols, the escape last, and learn from them.

        Each is worth sixteen parts, so that the prior can have fractions of one.
        """
        histogram = np.bincount(indices, minlength=len(self.counts))
        self.counts += 16 * histogram
        self.fresh += 16 * len(indices)
        self.total += 16 * len(indices)
        if self.total > _LARGEST_TOTAL:
            self.counts = (self.counts + 1) // 2
            self.total = int(self.counts.sum())
        return histogram

    def _rebuild(self) -> None:
        self.fresh = 0
        # Sums stay under 2^24, so float32 holds every count exactly.
        self._model = _stream().model.Categorical(self.counts.astype(np.float32), perfect=False)
        self._bits = np.log2(float(self.total)) - np.log2(self.counts)


class Tables:
    """Tables by kind, made on first use from `mean` (in 1/256) and `limit` given by kind."""

    def __init__(self, means: Ints, limits: Ints) -> None:
        self.means, self.limits = means, limits
        self._tables: dict[int, Table] = {}

    def __getitem__(self, kind: int) -> Table:
        table = self._tables.get(kind)
        if table is None:
            table = self._tables[kind] = Table.start(int(self.means[kind]), int(self.limits[kind]))
        return table


def _groups(kinds: Ints) -> list[tuple[int, Ints]]:
    """(kind, positions) in order of kind, positions in their own order."""
    order = np.argsort(kinds.astype(np.uint8), kind="stable")  # bytes are sorted by counting
    sorted_kinds = kinds[order]
    cuts = np.flatnonzero(sorted_kinds[1:] != sorted_kinds[:-1]) + 1
    starts = [0, *cuts.tolist()]
    return [
        (int(sorted_kinds[a]), order[a:b])
        for a, b in zip(starts, [*starts[1:], len(order)], strict=True)
    ]


class Encoder:
    """Collects symbols in the order they will be decoded; `finish` gives the stream."""

    def __init__(self, tables: Tables) -> None:
        self.tables = tables
        self._pieces: list[tuple[Any, NDArray[np.int32]]] = []
        self._escapes: list[Ints] = []
        self.bits = 0.0

    def put(self, symbols: Ints, kinds: Ints) -> float:
        """Encode a block (both of length n); returns its price in bits under the tables."""
        before = self.bits
        for kind, places in _groups(kinds) if len(kinds) else []:
            self._put(self.tables[kind], symbols[places])
        return self.bits - before

    def _put(self, table: Table, symbols: Ints) -> None:
        model, indices, escape = table.model, symbols + table.limit, 2 * table.limit + 1
        # Symbols below -limit wrap to huge unsigned numbers.
        outside = indices.view(np.uint64) >= escape
        if outside.any():
            self._escape(symbols[outside], table.limit)
            indices = np.where(outside, escape, indices)
        self._pieces.append((model, indices.astype(np.int32)))
        prices = table.bits
        self.bits += float(prices @ table.learn(indices))

    def _escape(self, symbols: Ints, limit: int) -> None:
        coded = 2 * (np.abs(symbols) - limit) - (symbols > 0)
        self._escapes.append(coded)
        self.bits += float((2 * np.floor(np.log2(coded)) + 1).sum())

    def finish(self) -> tuple[bytes, bytes]:
        """(ANS stream, escapes); little-endian."""
        coder = _stream().stack.AnsCoder()
        for model, indices in reversed(self._pieces):
            coder.encode_reverse(indices, model)
        values = np.concatenate(self._escapes).tolist() if self._escapes else []
        digits = "".join("0" * (value.bit_length() - 1) + f"{value:b}" for value in values)
        packed = (
            np.packbits(np.frombuffer(digits.encode(), dtype=np.uint8) - ord("0"))
            if digits
            else np.zeros(0, "u1")
        )
        return coder.get_compressed().astype("<u4").tobytes(), packed.tobytes()


class Decoder:
    """Gives back what an `Encoder` with equal tables was given, block by block."""

    def __init__(self, tables: Tables, stream: bytes, escapes: bytes) -> None:
        self._tables = tables
        self._coder = _stream().stack.AnsCoder(read_words(stream))
        self._escapes = "".join(f"{byte:08b}" for byte in escapes)
        self._at = 0

    def take(self, kinds: Ints) -> Ints:
        """Decode a block of symbols whose kinds are given."""
        symbols = np.empty(len(kinds), dtype=np.int64)
        for kind, places in _groups(kinds) if len(kinds) else []:
            symbols[places] = self._take(self._tables[kind], len(places))
        return symbols

    def take_of(self, kind: int, count: int) -> Ints:
        """Decode a block of `count` symbols of one kind."""
        return self.take(np.full(count, kind))

    def dequantized(self, tensor: Tensor) -> NDArray[np.float32]:
        """The float32 values of a tensor, quantized or not."""
        return dequantized(tensor)

    def _take(self, table: Table, count: int) -> Ints:
        indices = self._coder.decode(table.model, count)
        histogram = table.learn(indices)
        symbols: Ints = indices.astype(np.int64) - table.limit
        if histogram[-1]:
            for place in np.flatnonzero(indices == 2 * table.limit + 1).tolist():
                symbols[place] = self._escape(table.limit)
        return symbols

    def _escape(self, limit: int) -> int:
        start = self._escapes.find("1", self._at)
        length = start - self._at + 1
        if start < 0 or length > _LONGEST_ESCAPE or start + length > len(self._escapes):
            raise ArtifactError("the escape stream is damaged")
        self._at = start + length
        coded = int(self._escapes[start : self._at], 2)
        magnitude = (coded + 1) // 2 + limit
        return magnitude if coded % 2 else -magnitude

    def finish(self) -> None:
        """Refuse a stream that holds more than was taken."""
        rest = self._escapes[self._at :]
        check_ends(self._coder.is_empty(), len(rest), "1" in rest)


def read_words(stream: bytes) -> NDArray[np.uint32]:
    """The words of an ANS stream, of which the last is never zero."""
    if len(stream) % 4:
        raise ArtifactError(
            f"the symbol stream of {len(stream):,} bytes is not made of whole words"
        )
    if stream and not any(stream[-4:]):
        raise ArtifactError("the symbol stream is damaged: it ends in a word of zeros")
    return np.frombuffer(stream, dtype="<u4").astype(np.uint32)


def check_ends(empty: bool, left: int, ones: bool) -> None:
    """Refuse streams that hold more than was taken: symbols, or escapes beyond a byte's padding."""
    if not empty:
        raise ArtifactError("the symbol stream holds more than its tensors")
    if left >= 8 or ones:
        raise ArtifactError("the escape stream holds more than its tensors")
