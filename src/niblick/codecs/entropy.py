"""Order-0 entropy: what the symbols of a tensor would cost under their own histogram."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def order0_bits(symbols: NDArray[Any]) -> float:
    """Total bits of `symbols` (any shape, integers) under their empirical distribution."""
    if symbols.size == 0:
        return 0.0
    _, counts = np.unique(symbols, return_counts=True)
    return float(-(counts * np.log2(counts / symbols.size)).sum())
