"""NNCodec (ISO/IEC 15938-17) for the frontier of packing; run by pack.py in an interpreter that has
nncodec.

    PYTHON pack_nncodec.py WEIGHTS.npz DECODED.npz MAX_BYTES

The finest quantization parameter whose bitstream is at most MAX_BYTES, with dependent quantization
and tuned coder parameters; vectors at its default for what are no weights. Writes the decoded
arrays, prints JSON: bytes, qp, processor seconds.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np

# The package imports these for its example models, which compression never touches.
for absent in (
    "torchvision",
    "torchvision.datasets",
    "torchvision.transforms",
    "flwr",
    "timm",
    "transformers",
    "ptflops",
):
    sys.modules.setdefault(absent, MagicMock())

from nncodec import nnc

FINEST, COARSEST = -60, 0


def encode(weights: dict[str, np.ndarray], qp: int) -> bytes:
    """The bitstream at one quantization parameter."""
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "stream.nnc")
        return bytes(
            nnc.compress(
                weights,
                bitstream_path=path,
                qp=qp,
                use_dq=True,
                param_opt=True,
                return_bitstream=True,
            )
        )


def finest(weights: dict[str, np.ndarray], limit: int) -> int:
    """The smallest parameter that fits, by bisection; the coarsest where none does."""
    low, high = FINEST, COARSEST
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if len(encode(weights, middle)) <= limit else (middle + 1, high)
    return low


def main() -> None:
    """Search, encode once more for the clock, decode, save."""
    source, target, limit = sys.argv[1:]
    with np.load(source) as file:
        weights = {name: np.atleast_1d(file[name]) for name in file.files}
    qp = finest(weights, int(limit))
    started = time.process_time()
    stream = encode(weights, qp)
    middle = time.process_time()
    decoded = nnc.decompress(bytearray(stream))
    ended = time.process_time()
    np.savez(
        target,
        **{name: np.asarray(value).reshape(weights[name].shape) for name, value in decoded.items()},
    )
    print(
        json.dumps(
            {"bytes": len(stream), "qp": qp, "encode": middle - started, "decode": ended - middle}
        )
    )


if __name__ == "__main__":
    main()
