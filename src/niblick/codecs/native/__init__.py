"""The trellis search and the stream's decoder compiled: equal to the references bit for bit.

They take an eighth of the references' time. They are compiled on first use, once per source and
processor, into the cache folder; where there is no C compiler, or the sources are not at hand, the
references are used.
"""

from __future__ import annotations

import ctypes
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from niblick.codecs.contexts import LEVELS, THRESHOLDS, ColumnContext
from niblick.codecs.symbols import Tables, check_ends, read_words
from niblick.errors import ArtifactError
from niblick.toolchain import CODECS

if TYPE_CHECKING:
    from niblick.codecs.trellis import TrellisCode

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
_GUIDE = 1 << 9
_START = ctypes.CFUNCTYPE(None, ctypes.c_int64)


@cache
def load_native(*, build: bool) -> ctypes.CDLL | None:
    """The compiled library, with `build` compiled first if need be; None where there is none."""
    library = CODECS.obtain() if build else CODECS.load()
    if library is None or not hasattr(library, "niblick_levels"):
        return None
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    library.niblick_take.argtypes = [pointer, pointer, size, pointer, pointer]
    library.niblick_levels.argtypes = [pointer, pointer]
    library.niblick_trellis.argtypes = [
        *[pointer] * 4, ctypes.c_double, *[size] * 3, *[pointer] * 3,
    ]  # fmt: skip
    library.niblick_trellis.restype = None
    return library


def search_paths(
    library: ctypes.CDLL, target: Floats, bits: Floats, kinds: Ints, subset: Ints, multiplier: float
) -> tuple[Ints, Ints]:
    """Magnitudes and quantizers (L, N) of the cheapest paths, as `trellis.search` defines them."""
    length, paths = target.shape
    assert subset.shape == (2, 8) and bits.shape[1] == 2, "the compiled code has eight states"
    inputs = [
        np.ascontiguousarray(target, dtype=np.float64),
        np.ascontiguousarray(kinds, dtype=np.int64),
        np.ascontiguousarray(bits, dtype=np.float64),
        np.ascontiguousarray(subset, dtype=np.int64),
    ]
    scratch = np.empty(5 * length, dtype=np.int64)
    chosen, quantizer = np.empty((2, length, paths), dtype=np.int64)
    library.niblick_trellis(
        *(array.ctypes.data for array in inputs),
        multiplier,
        bits.shape[2],
        length,
        paths,
        *(array.ctypes.data for array in (scratch, chosen, quantizer)),
    )
    return chosen, quantizer


def _fields(names: str) -> list[tuple[str, Any]]:
    """Fields of a C structure: pointers where a star follows the name, else 64-bit integers."""
    kinds = {True: ctypes.c_void_p, False: ctypes.c_uint64}
    return [(name.rstrip("*"), kinds[name.endswith("*")]) for name in names.split()]


class DecoderStruct(ctypes.Structure):
    """`Decoder` of stream.c."""

    _fields_ = _fields(
        "words* left state escapes* bits at limits* offsets* totals* fresh* counts* cdf* guide*"
        " kinds start*"
    )


class MatrixStruct(ctypes.Structure):
    """`Matrix` of stream.c."""

    _fields_ = _fields(
        "rows columns height scale* lift* sum* seen base levels thresholds* states stride"
        " following* quantizer* state* kind* place* symbol* level*"
    )


Memory = dict[str, NDArray[Any]]


def decoder_struct(tables: Tables, stream: bytes, escapes: bytes) -> tuple[DecoderStruct, Memory]:
    """The structure of a decoder at the start of its streams, and the arrays it points to.

    The tables are not in it yet: see `put_table`.
    """
    words, kinds, sizes = read_words(stream), len(tables.limits), 2 * tables.limits + 2
    memory: Memory = {
        "words": words,
        "escapes": np.frombuffer(escapes, dtype=np.uint8),
        "limits": tables.limits,
        "offsets": np.cumsum(sizes) - sizes,
        "totals": np.zeros(kinds, dtype=np.int64),
        "fresh": np.full(kinds, -1),
        "counts": np.zeros(int(sizes.sum()), dtype=np.int64),
        "cdf": np.zeros(int(sizes.sum()) + kinds, dtype=np.uint32),
        "guide": np.zeros(kinds * _GUIDE, dtype=np.uint16),
    }
    decoder = DecoderStruct(
        **{name: array.ctypes.data for name, array in memory.items()},
        left=len(words),
        bits=8 * len(escapes),
        kinds=kinds,
    )
    # The last words are the coder's state: as many as it takes to fill its upper half.
    while decoder.left and decoder.state < 1 << 32:
        decoder.left -= 1
        decoder.state = decoder.state << 32 | int(words[decoder.left])
    return decoder, memory


def put_table(memory: Memory, tables: Tables, kind: int) -> None:
    """What the table of `kind` counts, in the arrays that `decoder_struct` gave."""
    counts, at = tables[kind].counts, int(memory["offsets"][kind])
    memory["counts"][at : at + len(counts)] = counts
    memory["totals"][kind] = counts.sum()


def matrix_struct(
    context: ColumnContext, code: TrellisCode, height: int, shape: tuple[int, int], room: Memory
) -> tuple[MatrixStruct, Memory]:
    """The structure of a matrix (R, C) in blocks of `height` rows, and the arrays it points to.

    `room` is what `matrix_room` gave; the levels are found in its `level`.
    """
    memory: Memory = {
        "scale": context.scale,
        "lift": context.lift,
        "sum": context.sum,
        "thresholds": THRESHOLDS,
        "following": code.following,
        "quantizer": code.quantizer,
        **room,
    }
    matrix = MatrixStruct(
        **{name: array.ctypes.data for name, array in memory.items()},
        rows=shape[0],
        columns=shape[1],
        height=height,
        seen=context.seen,
        base=context.base,
        levels=LEVELS,
        states=code.states,
        stride=code.stride,
    )
    return matrix, memory


def matrix_room(block: int, elements: int) -> Memory:
    """What decoding writes to, for blocks of so many symbols in matrices of so many."""
    return {
        "state": np.zeros(block, dtype=np.int64),
        "kind": np.zeros(block, dtype=np.uint8),
        "place": np.zeros(block, dtype=np.int64),
        "symbol": np.zeros(block, dtype=np.int64),
        "level": np.zeros(elements, dtype=np.int32),
    }


class NativeDecoder:
    """Gives back what an `Encoder` with equal tables was given; see `symbols.Decoder`."""

    def __init__(self, library: ctypes.CDLL, tables: Tables, stream: bytes, escapes: bytes) -> None:
        self._library = library
        self._decoder, self._memory = decoder_struct(tables, stream, escapes)
        # Few of the tables are used, and each takes time to make.
        self._start = _START(partial(put_table, self._memory, tables))
        self._decoder.start = ctypes.cast(self._start, ctypes.c_void_p)

    def take(self, kinds: Ints) -> Ints:
        """Decode a block of symbols whose kinds are given."""
        narrow = kinds.astype(np.uint8)
        place, symbols = np.empty((2, len(kinds)), dtype=np.int64)
        done = self._library.niblick_take(
            ctypes.byref(self._decoder),
            narrow.ctypes.data,
            len(kinds),
            place.ctypes.data,
            symbols.ctypes.data,
        )
        self._check(done)
        return symbols

    def levels(
        self, context: ColumnContext, code: TrellisCode, height: int, shape: tuple[int, int]
    ) -> NDArray[np.int32]:
        """Decode the levels (R, C) of a matrix in blocks of `height` rows."""
        room = matrix_room(height * shape[1], shape[0] * shape[1])
        matrix, _memory = matrix_struct(context, code, height, shape, room)
        self._check(self._library.niblick_levels(ctypes.byref(self._decoder), ctypes.byref(matrix)))
        return room["level"].reshape(shape)

    def finish(self) -> None:
        """Refuse a stream that holds more than was taken."""
        rest = np.unpackbits(self._memory["escapes"])[self._decoder.at :]
        check_ends(self._decoder.state == 0, len(rest), bool(rest.any()))

    def _check(self, done: int) -> None:
        if not done:
            raise ArtifactError("the escape stream is damaged")
