"""The trellis search compiled: the same results as the reference bit for bit, an order of magnitude
sooner.

Compiled on first use, once per source and processor, into the cache folder; where there is no C
compiler, or the source is not at hand, the reference is used.
"""

from __future__ import annotations

import ctypes
from functools import cache

import numpy as np
from numpy.typing import NDArray

from niblick.toolchain import CLibrary

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
# Nothing here may change a rounding: no contraction, no reordering; and no instruction beyond the
# platform's base.
_LIBRARY = CLibrary(
    package="niblick.codecs.native",
    names=("trellis.c",),
    flags=("-std=gnu11", "-O3", "-ffp-contract=off"),
)
_STATES = 8


class NativeTrellis:
    """The compiled search for the eight-state machine."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._function = library.niblick_trellis
        pointer, size = ctypes.c_void_p, ctypes.c_int64
        self._function.argtypes = [*[pointer] * 4, ctypes.c_double, *[size] * 3, *[pointer] * 3]
        self._function.restype = None

    def __call__(
        self, target: Floats, bits: Floats, kinds: Ints, subset: Ints, multiplier: float
    ) -> tuple[Ints, Ints]:
        """Magnitudes and quantizers (L, N) of the cheapest paths, as `trellis.search` defines
        them.
        """
        length, paths = target.shape
        assert subset.shape == (2, _STATES) and bits.shape[1] == 2
        inputs = [
            np.ascontiguousarray(target, dtype=np.float64),
            np.ascontiguousarray(kinds, dtype=np.int64),
            np.ascontiguousarray(bits, dtype=np.float64),
            np.ascontiguousarray(subset, dtype=np.int64),
        ]
        scratch = np.empty(5 * length, dtype=np.int64)
        outputs = [np.empty((length, paths), dtype=np.int64) for _ in range(2)]
        self._function(
            *(a.ctypes.data for a in inputs),
            multiplier,
            bits.shape[2],
            length,
            paths,
            scratch.ctypes.data,
            *(a.ctypes.data for a in outputs),
        )
        return outputs[0], outputs[1]


@cache
def native_trellis() -> NativeTrellis | None:
    """The compiled search, built first if need be; None where that cannot be done."""
    library = _LIBRARY.obtain()
    try:
        return None if library is None else NativeTrellis(library)
    except AttributeError:
        return None
