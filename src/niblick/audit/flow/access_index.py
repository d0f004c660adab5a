"""Subscripts of the interpreted program as numpy takes them."""

from __future__ import annotations

from typing import Any

import numpy as np

from niblick.audit.flow.boxes import Box


def subscript(part: Any) -> Any:
    """A subscript as numpy takes it; None where it is not known."""
    if part is None or part is Ellipsis or isinstance(part, (int, np.integer)):
        return np.newaxis if part is None else part
    if isinstance(part, slice):
        ends = [plain_index(p) for p in (part.start, part.stop, part.step)]
        return None if any(isinstance(p, Box) for p in ends) else slice(*ends)
    if isinstance(part, Box):
        if part.val is not None and part.val.dtype.kind in "iub":
            return part.val if part.val.ndim else part.val.item()
        if part.val is not None and part.val.dtype.kind == "f" and part.val.size == 1:
            return int(part.val.reshape(-1)[0])
        return None
    if isinstance(part, (list, tuple)) and all(isinstance(p, (int, np.integer)) for p in part):
        return np.asarray(part, dtype=np.int64)
    return None


def plain_index(part: Any) -> Any:
    """An index as a plain integer where it is known."""
    if isinstance(part, Box):
        return int(part.val.reshape(-1)[0]) if part.val is not None and part.val.size == 1 else part
    return int(part) if isinstance(part, (float, np.integer)) else part
