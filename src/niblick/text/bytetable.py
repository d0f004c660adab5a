"""How many UTF-8 bytes a token stands for after another (section 0 of the specification)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class ByteTable:
    """Three arrays of length V that turn token ids into byte counts.

    `base` is the bytes of a token without the space its leading U+2581 stands for, `leading_space`
    says whether it has one, `boundary` says whether a token is control, unknown or unused: after
    such a token no leading space is emitted. Summed over a document, `count` equals the UTF-8
    length of the decoded text.
    """

    base: NDArray[np.int32]
    leading_space: NDArray[np.bool_]
    boundary: NDArray[np.bool_]

    def count(self, tokens: ArrayLike, previous: ArrayLike) -> NDArray[np.int64]:
        """Bytes of each of `tokens` where `previous` (same shape) holds the token before it."""
        ids, before = np.asarray(tokens, dtype=np.int64), np.asarray(previous, dtype=np.int64)
        spaces = self.leading_space[ids] & ~self.boundary[before]
        return self.base[ids].astype(np.int64) + spaces
