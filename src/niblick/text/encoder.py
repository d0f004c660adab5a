"""SentencePiece's BPE encoding in compiled code: the same ids, at several times its speed.

What it cannot follow exactly (other kinds of models, pieces defined by a user, no byte fallback)
has no encoder here and is left to the library, as is everything where no compiled code is at hand.
"""

from __future__ import annotations

import ctypes
import struct
import threading
from functools import cache

import numpy as np
from numpy.typing import NDArray

from niblick.text import spmodel
from niblick.text.spmodel import SPACE, SentencePieceModel
from niblick.toolchain import ENCODER

Tokens = NDArray[np.uint16]
_SLOT = np.dtype([("key", "<u8"), ("value", "<i4"), ("rank", "<i4")])
_NODE = np.dtype([("base", "<i4"), ("parent", "<i4"), ("end", "<i4")])
_ENTRY, _ENTRIES = 48, 1 << 15  # bytes and number of encodings that are remembered
_SYMBOL, _MERGE = 20, 16  # bytes of the C structures
_ROOM, _KEPT = 1 << 12, 1 << 18  # bytes of text for which memory is ready, and kept at most
_GROWTH = 4  # bytes written for one byte of text: normalization that writes more is the library's
_BPE, _NONE = 2, -1


class _Tables(ctypes.Structure):
    """`Encoder` in bpe.c."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("trie", "pairs", "cache")),
        *((name, ctypes.c_int64) for name in ("pair_mask", "cache_mask")),
        ("ids", ctypes.c_void_p),
        ("bytes", ctypes.c_int32 * 256),
        ("units", ctypes.c_void_p),
        ("texts", ctypes.c_void_p),
        ("unit_count", ctypes.c_int64),
        ("text_bytes", ctypes.c_int64),
        ("prefix", ctypes.c_int32),
        ("squeeze", ctypes.c_int32),
        ("plain", ctypes.c_uint8 * 256),
    )


@cache
def _library(build: bool) -> ctypes.CDLL | None:
    library = ENCODER.obtain() if build else ENCODER.load()
    if library is None:
        return None
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    library.niblick_bpe_table.argtypes = [pointer, size, *[pointer] * 3, size]
    library.niblick_bpe_table.restype = None
    library.niblick_bpe_trie.argtypes = [pointer, size, *[pointer] * 3, size, pointer]
    library.niblick_bpe_trie.restype = size
    library.niblick_bpe_rules.argtypes = [pointer]
    library.niblick_bpe_rules.restype = None
    library.niblick_bpe_encode.argtypes = [pointer, pointer, size, *[pointer] * 3]
    library.niblick_bpe_encode.restype = size
    library.niblick_bpe_lower.argtypes = [pointer, size, pointer]
    library.niblick_bpe_lower.restype = size
    library.niblick_bpe_normalize.argtypes = [pointer, pointer, size, pointer, size]
    library.niblick_bpe_normalize.restype = size
    return library


def compile_encoder() -> bool:
    """Whether compiled code is at hand, compiled first if need be: before much is encoded."""
    found = _library(True) is not None
    _library.cache_clear()
    return found


def native_encoder(model: SentencePieceModel) -> NativeEncoder | None:
    """The compiled encoder of `model`; None where there is none, or it could give other ids."""
    library = _library(False)
    return NativeEncoder(library, model) if library and _followed(model) else None


def _followed(model: SentencePieceModel) -> bool:
    rules, pieces = model.message.normalizer, model.pieces
    normal = {piece.text for piece in pieces if piece.kind == spmodel.NORMAL}
    others = {piece.text for piece in pieces if piece.kind != spmodel.NORMAL}
    unused = {piece.text for piece in pieces if piece.kind == spmodel.UNUSED}
    return (
        model.message.trainer.model_type == _BPE
        and bool(model.message.trainer.byte_fallback)
        and bool(rules.escape_spaces)
        and not model.space_as_suffix
        and others >= set(spmodel.BYTE_PIECES)
        and len(normal) + len(others) == len(pieces)
        and not normal & others
        and not any(piece.kind == spmodel.USER_DEFINED for piece in pieces)
        and not any(len(text) < 2 for text in others)
        and not any(" " in text or "\0" in text or not text for text in normal)
        and not any(_can_be_merged(text, normal | unused) for text in unused)
    )


def _can_be_merged(text: str, known: set[str]) -> bool:
    cuts = ((text[:i], text[i:]) for i in range(1, len(text)))
    return any(all(len(part) == 1 or part in known for part in both) for both in cuts)


class NativeEncoder:
    """The encoding of one model. Threads take turns; what it remembers changes no result."""

    def __init__(self, library: ctypes.CDLL, model: SentencePieceModel) -> None:
        self._library, self._lock = library, threading.Lock()
        self._normalizes = not model.identity or model.dummy_prefix
        tables = self._tables = _Tables()
        kinds = enumerate(model.pieces)
        scores = {p.text.replace(SPACE, " "): (i, p.score) for i, p in kinds if p.kind == 1}
        symbols = _Symbols(scores)
        for value, text in enumerate(spmodel.BYTE_PIECES):
            tables.bytes[value] = next(i for i, p in enumerate(model.pieces) if p.text == text)
        self._kept = [symbols.ids, self._pairs(symbols.pairs()), self._trie(symbols.edges())]
        tables.ids = symbols.ids.ctypes.data
        self._cache = np.zeros(_ENTRY * _ENTRIES, dtype=np.uint8)
        tables.cache, tables.cache_mask = self._cache.ctypes.data, _ENTRIES - 1
        self._normalization(model)
        self._at = ctypes.addressof(tables)
        self._reserve(_ROOM)

    def _pairs(self, rows: list[tuple[int, int, int]]) -> NDArray[np.void]:
        """A hash table of `rows` of key, value and rank."""
        size = 1 << max(4, (3 * len(rows)).bit_length())
        slots = np.zeros(size, dtype=_SLOT)
        keys = np.array([row[0] for row in rows], dtype=np.uint64)
        values, ranks = (np.array([row[i] for row in rows], dtype=np.int32) for i in (1, 2))
        self._library.niblick_bpe_table(
            slots.ctypes.data, size - 1, keys.ctypes.data, values.ctypes.data, ranks.ctypes.data,
            len(rows),
        )  # fmt: skip
        self._tables.pairs, self._tables.pair_mask = slots.ctypes.data, size - 1
        return slots

    def _trie(self, edges: list[tuple[int, int, int]]) -> NDArray[np.void]:
        """The trie with `edges` of parent, byte and the symbol that ends there, sorted."""
        parents, ends = (np.array([edge[i] for edge in edges], dtype=np.int32) for i in (0, 2))
        letters = np.array([edge[1] for edge in edges], dtype=np.uint8)
        places, room, used = np.empty(len(edges) + 1, dtype=np.int32), 2 * len(edges) + 1024, -1
        while used < 0:
            nodes, room = np.empty(room, dtype=_NODE), 2 * room
            used = self._library.niblick_bpe_trie(
                nodes.ctypes.data, len(nodes), parents.ctypes.data, letters.ctypes.data,
                ends.ctypes.data, len(edges), places.ctypes.data,
            )  # fmt: skip
        self._tables.trie = nodes.ctypes.data
        return nodes

    def _normalization(self, model: SentencePieceModel) -> None:
        rules, tables = model.message.normalizer, self._tables
        tables.prefix, tables.squeeze = bool(rules.dummy_prefix), bool(rules.remove_spaces)
        charsmap = bytes(rules.charsmap)
        if len(charsmap) > 4:
            (size,) = struct.unpack_from("<I", charsmap)
            units = np.frombuffer(charsmap[4 : 4 + size // 4 * 4], dtype="<u4").copy()
            texts = np.frombuffer(charsmap[4 + size :] + b"\0", dtype=np.uint8).copy()
            self._kept += [units, texts]
            tables.units, tables.unit_count = units.ctypes.data, len(units)
            tables.texts, tables.text_bytes = texts.ctypes.data, len(texts)
        self._library.niblick_bpe_rules(ctypes.addressof(tables))

    def _reserve(self, size: int) -> None:
        """Working memory for a text of `size` bytes, and its addresses; untouched pages cost
        nothing.
        """
        self._room = size
        self._out = np.empty(size, dtype=np.uint16)
        sizes = (_SYMBOL * size, 3 * _MERGE * size, _GROWTH * size)
        self._work = [np.empty(each, dtype=np.uint8) for each in sizes]
        *self._scratch, self._normal = [each.ctypes.data for each in self._work]
        self._scratch.append(self._out.ctypes.data)

    def encode(self, text: str, *, lower: bool = False) -> Tokens | None:
        """The ids of valid text, with `lower` of what `niblick.text.case.lowered` makes of it; None
        for one that grows out of all proportion when normalized.
        """
        encoded = text.encode()
        data: bytes | int = encoded
        size, library = len(encoded), self._library
        with self._lock:
            if size + 1 > self._room or (lower and _GROWTH * size > self._room):
                self._reserve(_GROWTH * size if lower else 2 * size)
            if lower:
                size = library.niblick_bpe_lower(data, size, self._normal)
                data = self._normal
            elif self._normalizes:
                room = _GROWTH * self._room
                size = library.niblick_bpe_normalize(self._at, data, size, self._normal, room)
                data = self._normal
                if not 0 <= size <= self._room:
                    return None
            count = library.niblick_bpe_encode(self._at, data, size, *self._scratch)
            found = self._out[:count].copy()
            if self._room > _KEPT:
                self._reserve(_ROOM)
            return found


class _Symbols:
    """The pieces that merges make, and the single characters that they are made of."""

    def __init__(self, pieces: dict[str, tuple[int, float]]) -> None:
        self._pieces = pieces
        letters = dict.fromkeys(letter for text in pieces for letter in text)
        self.numbers = {text: n for n, text in enumerate(dict.fromkeys([*pieces, *letters]))}
        ids = [pieces[text][0] if text in pieces else _NONE for text in self.numbers]
        self.ids = np.array(ids, dtype=np.int32)

    def pairs(self) -> list[tuple[int, int, int]]:
        """(left << 32 | right, the piece they make, its rank) for every way to make a piece."""
        order = sorted({score for _, score in self._pieces.values()}, reverse=True)
        ranks, numbers = {score: rank for rank, score in enumerate(order)}, self.numbers
        return [
            (numbers[text[:i]] << 32 | numbers[text[i:]], numbers[text], ranks[score])
            for text, (_, score) in self._pieces.items()
            for i in range(1, len(text))
            if text[:i] in numbers and text[i:] in numbers
        ]

    def edges(self) -> list[tuple[int, int, int]]:
        """The trie of all symbols as edges: (parent, byte, the symbol that ends below or -1).

        The edge at n leads to node n + 1; the root is 0, and parents are in rising order.
        """
        ends = {text.encode(): number for text, number in self.numbers.items()}
        starts = {data[:size] for data in ends for size in range(1, len(data) + 1)}
        order = sorted(starts, key=lambda data: (len(data), data))
        nodes = {b"": 0} | {data: n for n, data in enumerate(order, 1)}
        return [(nodes[data[:-1]], data[-1], ends.get(data, _NONE)) for data in order]
