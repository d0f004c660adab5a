"""A model as one run of bytes that the WebAssembly engine uses where it lies.

An image is the structures of engine/native/engine.h as 32-bit WebAssembly lays them out, and every
array they point to. A pointer is a place in the image; a list says where pointers stand, so that
`nb_open` (native/web.c) can make addresses of them. The weights are the native engine's own codes.
"""

from __future__ import annotations

import ctypes
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from niblick.codecs.quantized import Tensors
from niblick.engine.structures import Layout, unsupported
from niblick.errors import NiblickError
from niblick.plan import Plan

COLUMNS = 64  # tokens per call
_MAGIC, _HEAD = b"NIM1", 28
_ALIGNED = 64
_NUMBERS = {
    ctypes.c_int32: "<i",
    ctypes.c_float: "<f",
    ctypes.c_int64: "<q",
    ctypes.c_double: "<d",
}


def flatten(plan: Plan, tensors: Tensors) -> bytes:
    """The image of a model for one sequence; `NiblickError` where the engine cannot run it."""
    why = unsupported(plan)
    if why is not None:
        raise NiblickError(f"the engine for browsers cannot run this model: {why}")
    sizes = {"slots": 1, "columns": COLUMNS, "threads": 1}
    layout = Layout(plan, tensors, None, context=plan.model.context, sizes=sizes)
    return _Image(layout).finish()


class _Image:
    """Bytes that grow; each array is put down once, where it is first pointed to."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._arrays = {array.ctypes.data: array for array in layout.arrays}
        self._placed: dict[int, int] = {}
        self._pointers: list[int] = []
        self._bytes = bytearray(_HEAD)

    def finish(self) -> bytes:
        """The whole image."""
        layers = [self._structure(layer, None) for layer in self._layout.layers]
        at_layers = self._append(b"".join(data for data, _ in layers))
        size = len(layers[0][0])
        for number, (_, pointers) in enumerate(layers):
            self._pointers += [at_layers + number * size + at for at in pointers]
        data, pointers = self._structure(self._layout.plan, at_layers)
        at_plan = self._append(data)
        self._pointers += [at_plan + at for at in pointers]
        at_pointers = self._append(np.array(self._pointers, "<u4").tobytes())
        head = (len(self._bytes), len(data), size, at_plan, at_pointers, len(self._pointers))
        self._bytes[:_HEAD] = _MAGIC + struct.pack("<6I", *head)
        return bytes(self._bytes)

    def _append(self, data: bytes) -> int:
        """Where `data` stands from now on."""
        self._bytes += bytes(-len(self._bytes) % _ALIGNED)
        at = len(self._bytes)
        self._bytes += data
        return at

    def _structure(self, value: ctypes.Structure, layers: int | None) -> tuple[bytes, list[int]]:
        """A structure in 32 bits, and where in it pointers stand; `layers` is where those are."""
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
            self._placed[address] = self._append(_little(self._arrays[address]))
        return self._placed[address]


def _little(array: NDArray[Any]) -> bytes:
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


