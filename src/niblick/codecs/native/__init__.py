"""The trellis search, the stream's decoder and what else opening a file takes, compiled: equal to
the references bit for bit.

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
from niblick.codecs.quantized import QuantizedTensor, Tensor, narrow
from niblick.codecs.symbols import Tables, check_ends, prior_weight, read_words
from niblick.errors import ArtifactError
from niblick.toolchain import CODECS

if TYPE_CHECKING:
    from niblick.codecs.trellis import TrellisCode

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
_GUIDE = 1 << 9
_START = ctypes.CFUNCTYPE(None, ctypes.c_int64)


_loaded: list[ctypes.CDLL] = []


def load_native(*, build: bool) -> ctypes.CDLL | None:
    """The compiled library, with `build` compiled first if need be; None where there is none."""
    return _loaded[0] if _loaded else _load(build)


@cache
def _load(build: bool) -> ctypes.CDLL | None:
    library = CODECS.obtain() if build else CODECS.load()
    if library is None or not hasattr(library, "niblick_coupled"):
        return None
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    library.niblick_take.argtypes = [pointer, pointer, size, pointer, pointer]
    library.niblick_levels.argtypes = [pointer, pointer]
    library.niblick_trellis.argtypes = [
        *[pointer] * 4, ctypes.c_double, *[size] * 3, *[pointer] * 3,
    ]  # fmt: skip
    library.niblick_coupled.argtypes = [
        *[pointer] * 5, ctypes.c_double, *[size] * 5, *[pointer] * 5,
    ]  # fmt: skip
    library.niblick_prior.argtypes = [*[size] * 3, pointer, pointer]
    library.niblick_dequantize.argtypes = [pointer, *[size] * 3, *[pointer] * 3]
    library.niblick_wider.argtypes = [pointer, size, size, pointer, size, pointer]
    library.niblick_outside.argtypes = [pointer, *[size] * 3, pointer]
    library.niblick_lay_out.argtypes = [pointer, *[size] * 4, pointer]
    for name in ("trellis", "coupled", "prior", "dequantize", "wider", "outside", "lay_out"):
        getattr(library, f"niblick_{name}").restype = None
    _loaded.append(library)
    return library


def address(array: NDArray[Any]) -> int:
    """Where an array's memory begins; `array.ctypes.data` takes several times as long."""
    return int(array.__array_interface__["data"][0])


def _inputs(target: Floats, kinds: Ints, bits: Floats, subset: Ints) -> list[NDArray[Any]]:
    """What both searches read, in the order of their arguments."""
    assert subset.shape == (2, 8) and bits.shape[1] == 2, "the compiled code has eight states"
    floats, ints = np.dtype(np.float64), np.dtype(np.int64)
    pairs = ((target, floats), (kinds, ints), (bits, floats), (subset, ints))
    return [np.ascontiguousarray(array, dtype=kind) for array, kind in pairs]


def search_paths(
    library: ctypes.CDLL, target: Floats, bits: Floats, kinds: Ints, subset: Ints, multiplier: float
) -> tuple[Ints, Ints]:
    """Magnitudes and quantizers (L, N) of the cheapest paths, as `trellis.search` defines them."""
    length, paths = target.shape
    inputs = _inputs(target, kinds, bits, subset)
    scratch = np.empty(5 * length, dtype=np.int64)
    chosen, quantizer = np.empty((2, length, paths), dtype=np.int64)
    library.niblick_trellis(
        *(address(array) for array in inputs),
        multiplier,
        bits.shape[2],
        length,
        paths,
        *(address(array) for array in (scratch, chosen, quantizer)),
    )
    return chosen, quantizer


def search_coupled(
    library: ctypes.CDLL,
    target: Floats,
    bits: Floats,
    kinds: Ints,
    subset: Ints,
    multiplier: float,
    coupling: Floats,
    paths: int,
    block: int,
) -> tuple[Ints, Ints, Floats]:
    """Symbols, levels and aims (B, R) of coupled rows, as `trellis.search_coupled` defines them."""
    batch, rows = target.shape
    inputs = _inputs(target, kinds, bits, subset)
    inputs.append(np.ascontiguousarray(coupling, dtype=np.float64))
    carried, steps = np.empty(17 * rows), np.empty(32 * rows)
    symbol, level = np.empty((2, batch, rows), dtype=np.int64)
    aim = np.empty((batch, rows))
    library.niblick_coupled(
        *(address(array) for array in inputs),
        multiplier,
        *(bits.shape[2], batch, rows, paths, block),
        *(address(array) for array in (carried, steps, symbol, level, aim)),
    )
    return symbol, level, aim


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
        **{name: address(array) for name, array in memory.items()},
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


def start_table(library: ctypes.CDLL, memory: Memory, tables: Tables, kind: int) -> None:
    """The same of a table that has learnt nothing, as `Table.start` makes it."""
    mean, limit = int(tables.means[kind]), int(tables.limits[kind])
    at, law = int(memory["offsets"][kind]), np.empty(2 * (limit + 1), dtype=np.int64)
    counts = memory["counts"][at : at + 2 * limit + 2]
    library.niblick_prior(mean, limit, prior_weight(mean), address(law), address(counts))
    counts[-1] = 1
    memory["totals"][kind] = counts.sum()


def dequantized(library: ctypes.CDLL, tensor: Tensor) -> NDArray[np.float32]:
    """The float32 values of a tensor (`niblick.codecs.quantized.dequantized`)."""
    if not isinstance(tensor, QuantizedTensor):
        return tensor
    codes, factors = np.ascontiguousarray(tensor.codes), tensor.wide_factors
    plain = tensor.correction is None and tensor.rounded_to == "float32"
    if codes.dtype not in (np.int8, np.int16, np.int32) or factors is None or not plain:
        return tensor.dequantize()
    out, sides = np.empty(codes.shape, dtype=np.float32), (tensor.row_steps, factors)
    steps, wide = (np.ascontiguousarray(side, dtype=np.float64) for side in sides)
    library.niblick_dequantize(
        address(codes), codes.itemsize, *codes.shape, address(steps), address(wide), address(out)
    )
    return out.reshape(tensor.shape)


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
        **{name: address(array) for name, array in memory.items()},
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
        self._library, self._kinds = library, np.empty(1 << 12, dtype=np.uint8)
        self._room = matrix_room(0, 0)
        self._decoder, self._memory = decoder_struct(tables, stream, escapes)
        # Few of the tables are used, and each takes time to make.
        self._start = _START(partial(start_table, library, self._memory, tables))
        self._decoder.start = ctypes.cast(self._start, ctypes.c_void_p)

    def take_of(self, kind: int, count: int) -> Ints:
        """Decode a block of `count` symbols of one kind."""
        if count > len(self._kinds):
            self._kinds = np.empty(count, dtype=np.uint8)
        kinds = self._kinds[:count]
        kinds[:] = kind
        place, symbols = np.empty((2, count), dtype=np.int64)
        done = self._library.niblick_take(
            ctypes.byref(self._decoder), address(kinds), count, address(place), address(symbols)
        )
        self._check(done)
        return symbols

    def dequantized(self, tensor: Tensor) -> NDArray[np.float32]:
        """The float32 values of a tensor, quantized or not."""
        return dequantized(self._library, tensor)

    def levels(
        self, context: ColumnContext, code: TrellisCode, height: int, shape: tuple[int, int]
    ) -> NDArray[Any]:
        """Decode the levels (R, C) of a matrix in blocks of `height` rows."""
        block, elements = height * shape[1], shape[0] * shape[1]
        room = self._room
        if len(room["state"]) < block or len(room["level"]) < elements:  # new pages cost time
            room = self._room = matrix_room(2 * block, 2 * elements)
        room["state"][:block] = 0
        matrix, _memory = matrix_struct(context, code, height, shape, room)
        self._check(self._library.niblick_levels(ctypes.byref(self._decoder), ctypes.byref(matrix)))
        return narrow(room["level"][:elements], copy=True).reshape(shape)

    def finish(self) -> None:
        """Refuse a stream that holds more than was taken."""
        rest = np.unpackbits(self._memory["escapes"])[self._decoder.at :]
        check_ends(self._decoder.state == 0, len(rest), bool(rest.any()))

    def _check(self, done: int) -> None:
        if not done:
            raise ArtifactError("the escape stream is damaged")
