"""By which means? The matrix products of one token (104 matrices of 512 x 512, 27 M weights), one
thread, batch 1.

`python benchmarks/decode_means.py` compares PyTorch in float32 and with its int8 weights (a call
per matrix), a numba kernel (where numba is installed) and the native engine's at 6 and 8 bits (one
call): what a token costs at least. Processor time, best of several rounds in turn, so that another
process on the machine disturbs all of them alike.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable

import numpy as np
import torch

from niblick.engine.structures import matrix_of
from niblick.engine.weights import store
from niblick.toolchain import ENGINE

SIDE, COUNT, ROUNDS = 512, 104, 12


def pointer(array: np.ndarray) -> ctypes.c_void_p:
    """Address of an array."""
    return ctypes.c_void_p(array.ctypes.data)


def torch_float() -> Callable[[], None]:
    """F.linear on float32 weights."""
    weights, x = [torch.randn(SIDE, SIDE) for _ in range(COUNT)], torch.randn(1, SIDE)

    def run() -> None:
        for weight in weights:
            torch.nn.functional.linear(x, weight)

    return run


def torch_int8() -> Callable[[], None]:
    """PyTorch's product of bfloat16 inputs with packed int8 weights."""
    weights = [torch.randint(-127, 128, (SIDE, SIDE), dtype=torch.int8) for _ in range(COUNT)]
    x, scales = torch.randn(1, SIDE).bfloat16(), torch.rand(SIDE).bfloat16()

    def run() -> None:
        for weight in weights:
            torch._weight_int8pack_mm(x, weight, scales)

    return run


def numba_int8() -> Callable[[], None]:
    """A numba kernel over int8 codes and float32 inputs, all matrices in one call."""
    import numba

    @numba.njit(fastmath=True)
    def products(codes: np.ndarray, x: np.ndarray, out: np.ndarray) -> None:
        for m in range(codes.shape[0]):
            for r in range(codes.shape[1]):
                total = np.float32(0)
                for c in range(codes.shape[2]):
                    total += np.float32(codes[m, r, c]) * x[c]
                out[r] = total

    codes = np.random.default_rng(0).integers(-127, 128, (COUNT, SIDE, SIDE)).astype(np.int8)
    x, out = np.random.rand(SIDE).astype(np.float32), np.zeros(SIDE, np.float32)
    return lambda: products(codes, x, out)


def native(limit: int) -> Callable[[], None]:
    """The engine's kernel over exact codes of up to `limit`, laid out as the engine lays them
    out.
    """
    library = ENGINE.obtain()
    assert library is not None
    library.nb_floats.restype = ctypes.c_void_p
    draw = np.random.default_rng(0)
    numbers = draw.integers(-limit, limit + 1, (COUNT * SIDE, SIDE)).astype(np.int32)
    codes = store(numbers, np.full(COUNT * SIDE, 0.01, dtype=np.float32))
    memory = library.nb_floats(ctypes.c_int64(codes.data.nbytes // 4))
    ctypes.memmove(memory, codes.data.ctypes.data, codes.data.nbytes)
    matrix = matrix_of(codes)
    matrix.codes = ctypes.cast(memory, ctypes.POINTER(ctypes.c_uint8))
    x, out, scratch = (np.random.rand(n).astype(np.float32) for n in (SIDE, codes.rows, 1 << 16))
    zero, rows = ctypes.c_float(0), codes.rows

    def run(kept: object = codes) -> None:
        library.nb_product(
            ctypes.byref(matrix),
            pointer(x),
            ctypes.c_int64(0),
            pointer(out),
            ctypes.c_int64(0),
            1,
            0,
            rows,
            0,
            zero,
            pointer(scratch),
        )

    return run


def main() -> None:
    """Print milliseconds per token of each."""
    torch.set_num_threads(1)
    ways = {"torch float32": torch_float(), "torch int8": torch_int8()}
    try:
        ways["numba int8"] = numba_int8()
    except ImportError:
        print("numba is not installed: left out")
    ways |= {"native 8 bits": native(127), "native 6 bits": native(31)}
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(ROUNDS):
        for name, way in ways.items():
            began = time.process_time()
            way()
            best[name] = min(best[name], time.process_time() - began)
    for name, seconds in best.items():
        print(f"{name}: {seconds * 1e3:.2f} ms")


if __name__ == "__main__":
    main()
