"""The decoder of the symbol stream compiled: the same numbers and errors as the reference, eight
times as fast.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from niblick.codecs.contexts import LEVELS, THRESHOLDS, ColumnContext
from niblick.codecs.symbols import Tables, check_ends, read_words
from niblick.codecs.trellis import Machine
from niblick.errors import ArtifactError
from niblick.toolchain import CLibrary

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
# Nothing here may change a rounding: no contraction, no reordering; and no instruction beyond the
# platform's base.
_LIBRARY = CLibrary(
    package="niblick.codecs.native",
    names=("stream.c",),
    flags=("-std=gnu11", "-O2", "-ffp-contract=off"),
)
_GUIDE = 1 << 10


class _Decoder(ctypes.Structure):
    """`Decoder` of stream.c."""

    _fields_ = (
        ("words", ctypes.c_void_p),
        ("left", ctypes.c_int64),
        ("state", ctypes.c_uint64),
        ("escapes", ctypes.c_void_p),
        ("bits", ctypes.c_int64),
        ("at", ctypes.c_int64),
        *(
            (name, ctypes.c_void_p)
            for name in ("limits", "offsets", "totals", "fresh", "counts", "cdf", "guide")
        ),
        ("kinds", ctypes.c_int64),
    )


class _Matrix(ctypes.Structure):
    """`Matrix` of stream.c."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("rows", "columns", "height")),
        *((name, ctypes.c_void_p) for name in ("scale", "lift", "sum")),
        *((name, ctypes.c_int64) for name in ("seen", "base", "levels")),
        ("thresholds", ctypes.c_void_p),
        ("states", ctypes.c_int64),
        ("stride", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("following", "quantizer", "state")),
        ("step", ctypes.c_double),
        *(
            (name, ctypes.c_void_p)
            for name in ("row_step", "column_step", "kind", "place", "symbol", "values")
        ),
    )


class NativeDecoder:
    """Gives back what an `Encoder` with equal tables was given; see `symbols.Decoder`."""

    def __init__(self, library: ctypes.CDLL, tables: Tables, stream: bytes, escapes: bytes) -> None:
        self._library, words = library, read_words(stream)
        counts = tables.counts()
        kinds, sizes = len(counts), np.array([len(each) for each in counts])
        self._memory: dict[str, NDArray[Any]] = {
            "words": words,
            "escapes": np.frombuffer(escapes, dtype=np.uint8),
            "limits": tables.limits,
            "offsets": np.cumsum(sizes) - sizes,
            "totals": np.array([int(each.sum()) for each in counts]),
            "fresh": np.full(kinds, -1),
            "counts": np.concatenate(counts),
            "cdf": np.empty(int(sizes.sum()) + kinds, dtype=np.uint32),
            "guide": np.empty(kinds * _GUIDE, dtype=np.uint16),
        }
        self._decoder = _Decoder(
            **{name: array.ctypes.data for name, array in self._memory.items()},
            left=len(words),
            bits=8 * len(escapes),
            kinds=kinds,
        )
        # The last words are the coder's state: as many as it takes to fill its upper half.
        while self._decoder.left and self._decoder.state < 1 << 32:
            self._decoder.left -= 1
            self._decoder.state = self._decoder.state << 32 | int(words[self._decoder.left])

    def take(self, kinds: Ints) -> Ints:
        """Decode a block of symbols whose kinds are given."""
        narrow, place, symbols = (
            kinds.astype(np.uint8),
            np.empty(len(kinds), np.int64),
            np.empty(len(kinds), np.int64),
        )
        self._check(
            self._library.niblick_take(
                ctypes.byref(self._decoder),
                narrow.ctypes.data,
                len(kinds),
                place.ctypes.data,
                symbols.ctypes.data,
            )
        )
        return symbols

    def values(
        self,
        context: ColumnContext,
        machine: Machine,
        height: int,
        step: float,
        rows: Floats,
        columns: Floats,
    ) -> NDArray[np.float32]:
        """Decode a matrix: levels times `step` * `rows` (R,) * `columns` (C,); infinite or NaN
        beyond float32.
        """
        block = height * len(columns)
        memory: dict[str, NDArray[Any]] = {
            "scale": context.scale,
            "lift": context.lift,
            "sum": context.sum,
            "thresholds": THRESHOLDS,
            "following": machine.following,
            "quantizer": machine.quantizer,
            "state": np.zeros(block, dtype=np.int64),
            "row_step": rows,
            "column_step": columns,
            "kind": np.empty(block, dtype=np.uint8),
            "place": np.empty(block, dtype=np.int64),
            "symbol": np.empty(block, dtype=np.int64),
            "values": np.empty((len(rows), len(columns)), dtype=np.float32),
        }
        matrix = _Matrix(
            **{name: array.ctypes.data for name, array in memory.items()},
            rows=len(rows),
            columns=len(columns),
            height=height,
            seen=context.seen,
            base=context.base,
            levels=LEVELS,
            states=machine.states,
            stride=machine.stride,
            step=step,
        )
        self._check(self._library.niblick_matrix(ctypes.byref(self._decoder), ctypes.byref(matrix)))
        return memory["values"]

    def finish(self) -> None:
        """Refuse a stream that holds more than was taken."""
        rest = np.unpackbits(self._memory["escapes"])[self._decoder.at :]
        check_ends(self._decoder.state == 0, len(rest), bool(rest.any()))

    def _check(self, code: int) -> None:
        if not code:
            raise ArtifactError("the escape stream is damaged")


@cache
def native_stream(*, build: bool) -> ctypes.CDLL | None:
    """The compiled decoder, with `build` compiled first if need be; None where there is none."""
    library = _LIBRARY.obtain() if build else _LIBRARY.load()
    if library is None or not hasattr(library, "niblick_matrix"):
        return None
    pointer = ctypes.c_void_p
    library.niblick_take.argtypes = [pointer, pointer, ctypes.c_int64, pointer, pointer]
    library.niblick_matrix.argtypes = [pointer, pointer]
    return library
