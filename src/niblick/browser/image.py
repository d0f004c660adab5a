"""A model as one run of bytes that the WebAssembly engine uses where it lies.

An image is the structures of engine/native/engine.h and codecs/native/stream.c as 32-bit
WebAssembly lays them out, and every array they point to. A pointer is a place in the image; a list
says where pointers stand, so that `nb_open` (native/web.c) can make addresses of them. The weights
are the native engine's own codes; those of few bits are zeros here, and come as a symbol stream.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
from numpy.typing import NDArray

from niblick.browser.coding import CodedMatrix, code_matrix
from niblick.codecs.native import decoder_struct, matrix_room, matrix_struct, put_table
from niblick.codecs.quantized import Tensors
from niblick.codecs.symbols import Encoder
from niblick.codecs.tensor_stream import new_tables
from niblick.engine.structures import Layout, matrix_of, unsupported
from niblick.engine.weights import Codes
from niblick.errors import NiblickError
from niblick.plan import Plan, each_member

COLUMNS = 64  # tokens per call
_MAGIC, _HEAD, _ALIGNED = b"NIM1", 48, 64
_CODED_BITS = 12  # codes of more bits hardly get shorter
_NUMBERS = {
    ctypes.c_int32: "<i",
    ctypes.c_float: "<f",
    ctypes.c_int64: "<q",
    ctypes.c_uint64: "<Q",
    ctypes.c_double: "<d",
}
_Array = NDArray[Any]


def flatten(plan: Plan, tensors: Tensors) -> bytes:
    """The image of a model, an ensemble too, for one sequence; `NiblickError` where the engine
    cannot run it.
    """
    why = unsupported(plan)
    if why is not None:
        raise NiblickError(f"the engine for browsers cannot run this model: {why}")
    sizes = {"slots": 1, "columns": COLUMNS, "threads": 1}
    known: dict[int, Codes] = {}  # tables that members share are put down once
    layouts = [
        Layout(member, own, None, context=plan.model.context, sizes=sizes, known=known)
        for member, own in each_member(plan, tensors)
    ]
    matrices = list(known.values())
    coded = [codes for codes in matrices if codes.bits <= _CODED_BITS]
    vectors = [array for layout in layouts for array in layout.vectors]
    image = _Image([*vectors, *_sides(matrices)])
    for codes in matrices:
        image.add(
            [codes.data if codes.bits > _CODED_BITS else np.zeros_like(codes.data)],
            instead_of=codes.data,
        )
    layers = [image.put(list(layout.layers)) for layout in layouts]
    at_plans = image.put([layout.plan for layout in layouts], layers=layers)
    stream = _put_stream(image, coded)
    sizes_of = (image.size_of(layouts[0].plan), image.size_of(layouts[0].layers[0]))
    return image.finish(sizes_of, (at_plans, len(layouts)), stream, len(coded))


def _sides(matrices: Iterable[Codes]) -> list[_Array]:
    parts = [(c.scales, c.columns, c.tail, c.tail_at) for c in matrices]
    return [array for each in parts for array in each if array is not None]


def _put_stream(image: _Image, coded: Sequence[Codes]) -> tuple[int, int, int]:
    """Where the decoder, how it reads each matrix, and the matrices it fills stand."""
    encoder = Encoder(new_tables())
    found = [code_matrix(encoder, codes) for codes in coded]
    tables = new_tables()
    decoder, memory = decoder_struct(tables, *encoder.finish())
    for kind in range(len(tables.limits)):
        put_table(memory, tables, kind)
    image.add(memory.values())
    at_decoder = image.put([decoder])
    blocks = [each.height * codes.cols for each, codes in zip(found, coded, strict=True)]
    elements = [codes.rows * codes.cols for codes in coded]
    room = matrix_room(max(blocks, default=0), max(elements, default=0))
    how = [_how(image, each, codes, room) for each, codes in zip(found, coded, strict=True)]
    return at_decoder, image.put(how), image.put([matrix_of(codes) for codes in coded])


def _how(image: _Image, found: CodedMatrix, codes: Codes, room: dict[str, _Array]) -> Any:
    shape = (codes.rows, codes.cols)
    matrix, memory = matrix_struct(found.context, found.code, found.height, shape, room)
    image.add(memory.values())
    return matrix


class _Image:
    """Bytes that grow; each array is put down once, where it is first pointed to."""

    def __init__(self, arrays: Iterable[_Array]) -> None:
        self._arrays: dict[int, _Array] = {}
        self._kept: list[_Array] = []
        self._placed: dict[int, int] = {}
        self._pointers: list[int] = []
        self._bytes = bytearray(_HEAD)
        self.add(arrays)

    def add(self, arrays: Iterable[_Array], *, instead_of: _Array | None = None) -> None:
        """Arrays that structures may point to; one may stand in for another."""
        for array in arrays:
            self._kept.append(array)  # an address belongs to one array while that lives
            whose = array if instead_of is None else instead_of
            self._arrays[whose.ctypes.data] = array

    def put(self, structures: Sequence[ctypes.Structure], *, layers: Sequence[int] = ()) -> int:
        """Where structures of one kind stand from now on; `layers` are what plans point to."""
        made = [self._structure(each, at) for each, at in zip_longest(structures, layers)]
        start = self._append(b"".join(data for data, _ in made))
        at = start
        for data, pointers in made:
            self._pointers += [at + place for place in pointers]
            at += len(data)
        return start

    def size_of(self, structure: ctypes.Structure) -> int:
        """Its bytes in 32 bits."""
        return len(self._structure(structure, 0)[0])

    def finish(
        self,
        sizes: tuple[int, int],
        plans: tuple[int, int],
        stream: tuple[int, int, int],
        coded: int,
    ) -> bytes:
        """The whole image: nb_image of native/web.c, then everything."""
        pointers = self._append(np.array(self._pointers, "<u4").tobytes())
        head = (len(self._bytes), *sizes, *plans, pointers, len(self._pointers), *stream, coded)
        self._bytes[:_HEAD] = _MAGIC + struct.pack("<11I", *head)
        return bytes(self._bytes)

    def _append(self, data: bytes) -> int:
        """Where `data` stands from now on."""
        self._bytes += bytes(-len(self._bytes) % _ALIGNED)
        at = len(self._bytes)
        self._bytes += data
        return at

    def _structure(self, value: ctypes.Structure, layers: int | None) -> tuple[bytes, list[int]]:
        """A structure in 32 bits, and where in it pointers stand."""
        out, pointers, widest = bytearray(), [], 4
        for field in value._fields_:
            name, kind = field[0], field[1]
            if issubclass(kind, ctypes.Structure):
                data, inner = self._structure(getattr(value, name), None)
                pointers += [len(out) + at for at in inner]
            elif kind in _NUMBERS:
                data = struct.pack(_NUMBERS[kind], getattr(value, name))
                widest = max(widest, len(data))
                out += bytes(-len(out) % len(data))
            else:
                at = layers if name == "layer" else self._place(getattr(value, name))
                pointers += [len(out)] if at else []
                data = struct.pack("<I", at or 0)
            out += data
        return bytes(out) + bytes(-len(out) % widest), pointers

    def _place(self, pointer: Any) -> int | None:
        """Where the array that a pointer points to stands in the image; None for null."""
        address = ctypes.cast(pointer, ctypes.c_void_p).value
        if address is None:
            return None
        if address not in self._placed:
            array = self._arrays[address]
            little = array.astype(array.dtype.newbyteorder("<"), copy=False)
            self._placed[address] = self._append(little.tobytes())
        return self._placed[address]
