"""The kernels' shared library: compiled from kernels.c once per source and processor, kept in the
cache folder.

Where it cannot be compiled, there is no library and the model keeps its plain operations.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from niblick.toolchain import KERNELS, variant_is_forced

_SUFFIX = {torch.float32: "f32", torch.bfloat16: "bf16"}
# One letter per argument: p pointer, f float, i 64-bit integer; the order is that of kernels.h.
_ARGUMENTS = {
    "mix_norm": "ppppfpppii",
    "mix_norm_back": "ppppppppfpppii",
    "add_norm": "pppfpppii",
    "add_norm_back": "ppppppfpppii",
    "shift": "ppppppiii",
    "shift_back": "ppppppppiii",
    "square": "pfpii",
    "square_back": "ppfpii",
    "gate": "pppii",
    "gate_back": "pppppii",
    "nll": "ppfppii",
    "nll_back": "ppppfpii",
    "lookup": "pppii",
    "lookup_back": "pppiii",
    "embed": "ppppppppii",
    "embed_back": "ppppppppppppiii",
    "heads": "ppppppiiiii",
    "heads_back": "ppppppppiiiii",
    "exclude": "pppiiii",
    "exclude_back": "pppppiiii",
    "shift_mix": "ppppiii",
    "shift_mix_back": "ppppppiii",
    "local_value": "ppppiiii",
    "local_value_back": "pppppiiii",
    "gated_filter": "ppppppiiii",
    "gated_filter_back": "ppppppppppiiii",
    "softmax": "pppfiii",
    "softmax_back": "ppfii",
    "descend": "ppffi",
}
_PRODUCTS = {  # what is built on products.h, or for float on floats.h
    "attend": "ppppppiiiiii",
    "attend_back": "ppppppppppiiiiii",
    "head": "pppfpppiii",
    "head_back": "pppppiii",
    "channel": "ppppppffppppiii",
    "channel_back": "ppppppffpppppppppiii",
    "maps": "pppppiiiii",
    "maps_back": "pppppppiiiii",
    "project": "pppppppppppppiiiiiii",
    "project_back": "pppppppppppppppppiiiiiii",
    "token_shift": "pppppppppppiii",
    "token_shift_back": "pppppppppppppppppppiii",
    "newton": "ppfffiiii",
}
_FLOAT_ONLY = {
    "adam": "ppfppffffffi",
    "momentum": "pfpfii",
    "collect": "pppppii",
    "fold": "ppii",
}  # optimizer.h, kernels.c
_TYPES = {"p": ctypes.c_void_p, "f": ctypes.c_float, "i": ctypes.c_int64}
DTYPES = tuple(_SUFFIX)
CHUNKS = 32  # partial sums per reduction, as in kernels.c
LANES = 64  # positions of one tile, as in products.h
PANEL = 32  # columns of packed weights, as in products.h


class Kernels:
    """The library's functions by name, for tensors of float32 or bfloat16.

    `multiplies`: the types for which it has whole mixers, the head and Newton-Schulz, as this
    processor's instructions let it.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self._functions: dict[tuple[str, torch.dtype], Any] = {}
        self._set_threads, self._threads = library.nb_threads, 0
        self._set_threads.argtypes, self._set_threads.restype = [ctypes.c_int], None
        _borrow_threads(library)
        self._use_tiles = library.use_tiles
        self._use_tiles.argtypes, self._use_tiles.restype = [ctypes.c_int64], ctypes.c_int64
        self.tiles = self.use_tiles(not variant_is_forced())
        ours = {torch.float32: library.multiplies(), torch.bfloat16: library.attends()}
        self.multiplies = frozenset(dtype for dtype, has in ours.items() if has)
        for dtype, suffix in _SUFFIX.items():
            known = _ARGUMENTS | (_PRODUCTS if dtype in self.multiplies else {})
            known |= _FLOAT_ONLY if dtype is torch.float32 else {}
            for name, letters in known.items():
                function = getattr(library, f"{name}_{suffix}")
                function.argtypes, function.restype = [_TYPES[letter] for letter in letters], None
                self._functions[name, dtype] = function

    def __call__(self, name: str, dtype: torch.dtype, *arguments: Tensor | float | None) -> None:
        """Call kernel `name`; tensors must be contiguous, on the CPU, of the types it states."""
        function = self._functions[name, dtype]
        self.follow_torch()
        function(*(a.data_ptr() if isinstance(a, Tensor) else a for a in arguments))

    def use_tiles(self, wanted: bool) -> bool:
        """Whether products of bfloat16 go to the processor's matrix tiles (AMX) from now on: where
        that is wanted, and the processor and the system have them.
        """
        return bool(self._use_tiles(wanted))

    def follow_torch(self) -> None:
        """Use as many threads as torch does from now on; a call does so by itself."""
        threads = torch.get_num_threads()
        if threads != self._threads:
            self._set_threads(threads)
            self._threads = threads


def _borrow_threads(library: ctypes.CDLL) -> None:
    """Let kernels run on the threads of torch's OpenMP, where that is GNU's and loaded."""
    found = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))
    if not found or not hasattr(os, "RTLD_NOLOAD"):
        return
    try:
        openmp = ctypes.CDLL(str(found[0]), mode=os.RTLD_NOLOAD | os.RTLD_NOW)
        functions = openmp.GOMP_parallel, openmp.omp_get_thread_num
    except (OSError, AttributeError):
        return
    library.nb_borrow.restype = None
    library.nb_borrow(*(ctypes.cast(function, ctypes.c_void_p) for function in functions))


def load_kernels() -> Kernels | None:
    """The kernels, compiled first if need be; None where that cannot be done."""
    library = KERNELS.obtain()
    try:
        return None if library is None else Kernels(library)
    except AttributeError:
        return None
