"""How many UTF-8 bytes a token stands for after another (section 0 of the specification)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from niblick.errors import DataError


@dataclass(frozen=True)
class ByteTable:
    """Arrays of length V that turn token ids into byte counts.

    `base` is the bytes of a token without the space its leading U+2581 stands for, `leading_space`
    says whether it has one, `boundary` says whether a token is control, unknown or unused: after
    such a token no leading space is emitted. `marks`, where there are any, count 0 and do not part
    what stands around them: the start of a text goes on after them. Summed over a document, `count`
    equals the UTF-8 length of the decoded text.
    """

    base: NDArray[np.int32]
    leading_space: NDArray[np.bool_]
    boundary: NDArray[np.bool_]
    marks: NDArray[np.bool_] | None = None

    def count(self, tokens: ArrayLike, previous: ArrayLike) -> NDArray[np.int64]:
        """Bytes of each of `tokens` where `previous` (same shape) holds the token before it.

        Before a mark there, the elements of `previous` that come before it are looked at: with
        marks, both run through a text in its order.
        """
        ids, before = np.asarray(tokens, dtype=np.int64), np.asarray(previous, dtype=np.int64)
        if self.marks is not None:
            before = self._passed_over(before, self.marks)
        spaces = self.leading_space[ids] & ~self.boundary[before]
        return self.base[ids].astype(np.int64) + spaces

    @staticmethod
    def _passed_over(tokens: NDArray[np.int64], marks: NDArray[np.bool_]) -> NDArray[np.int64]:
        """`tokens` with each mark replaced by the last token before it that is none."""
        flat = tokens.ravel()
        last = np.maximum.accumulate(np.where(marks[flat], 0, np.arange(len(flat))))
        return flat[last].reshape(tokens.shape)


def refuse_surrogates(text: str, what: str = "text") -> None:
    """Raise `DataError` if `text` is not valid Unicode, naming `what` it is and the place."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{what} holds a lone surrogate U+{ord(text[error.start]):04X} at character"
            f" {error.start}; only valid Unicode can be tokenized"
        ) from None
