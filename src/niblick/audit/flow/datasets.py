"""Data sets of the program and the batches of them that PyTorch's loaders hand out."""

from __future__ import annotations

import ast
from typing import Any

from niblick.audit.flow.boxes import Box, side_by_side, snapshot
from niblick.audit.flow.builtins import Builtins
from niblick.audit.flow.growing import between
from niblick.audit.flow.objects import Function, Instance
from niblick.audit.flow.turns import Whole
from niblick.audit.words import words

_MOST_ROWS = 8192
_OTHER_ORDER = words("sampler batch_sampler collate_fn")


class Datasets(Builtins):
    """Rows of data sets, chosen and batched."""

    def handed_out(self, last: str, args: list[Any], named: dict[str, Any], node: ast.AST) -> Any:
        """The rows of a subset, or the batches of a loader in order, which sums do not mind;
        NotImplemented where the rows are not known.
        """
        rows = self.rows_of(args[0], node) if args else None
        if not rows or any(named.get(name) is not None for name in _OTHER_ORDER):
            return NotImplemented
        if last == "Subset":
            which = args[1] if len(args) > 1 else named.get("indices")
            if isinstance(which, (list, range)) and all(isinstance(i, int) for i in which):
                return [rows[i] for i in which if i < len(rows)]
            return NotImplemented
        size = args[1] if len(args) > 1 else named.get("batch_size", 1)
        if not isinstance(size, int) or size < 1:
            return NotImplemented
        whole = len(rows) // size * size if named.get("drop_last") is True else len(rows)
        return Whole(_batch(rows[i : min(i + size, whole)]) for i in range(0, whole, size))

    def rows_of(self, data: Any, node: ast.AST) -> list[Any] | None:
        """The rows of a data set: those between its second and its last lie evenly."""
        if isinstance(data, list):
            return data
        if not isinstance(data, Instance):
            return None
        get, length = data.cls.find("__getitem__"), data.cls.find("__len__")
        if not isinstance(get, Function) or not isinstance(length, Function):
            return None
        count = self.call_function(length, [data], {}, node)
        if not isinstance(count, int) or not 0 < count <= _MOST_ROWS:
            return None
        taken = range(count) if count < 4 else (0, 1, count - 1)
        rows = [self.call_function(get, [data, i], {}, node) for i in taken]
        if not all(isinstance(r, tuple) and all(isinstance(b, Box) for b in r) for r in rows):
            return None
        if count < 4:
            return rows
        bare = [[snapshot(part, val=None) for part in row] for row in rows]
        columns = [between(a, b, c, count - 2) for a, b, c in zip(*bare, strict=True)]
        inner = list(zip(*columns, strict=False))
        return [*rows[:2], *inner, rows[2]] if len(inner) == count - 3 else None


def _batch(rows: list[Any]) -> tuple[Box, ...]:
    return tuple(side_by_side(list(column), 0, True) for column in zip(*rows, strict=True))
