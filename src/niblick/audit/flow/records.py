"""Record classes that check and convert plain data (pydantic models), and copies of records with
changes.
"""

from __future__ import annotations

import ast
import json
from typing import Any

from niblick.audit.flow.files import Files
from niblick.audit.flow.objects import Class, Instance

_MAX_JSON = 4_000_000
_MOVES = frozenset(["to", "cuda", "cpu", "eval", "train", "float", "double", "requires_grad_"])


class Records(Files):
    """Records made from dictionaries, copied and dumped."""

    def note_type(self, body: dict[str, Any], name: str, annotation: ast.expr) -> None:
        """Remembers which class of the program a record's field is declared with."""
        for part in ast.walk(annotation):
            found = self.lookup(part.id) if isinstance(part, ast.Name) else None
            if isinstance(found, Class):
                body.setdefault("__types__", {})[name] = found

    def validated(self, cls: Class, values: dict[Any, Any]) -> Instance:
        """A record of `cls` from plain values, nested records by their declared classes."""
        types: dict[str, Class] = {}
        for owner in (*[b for b in cls.bases if isinstance(b, Class)], cls):
            types.update(owner.body.get("__types__", {}))
        out = Instance(cls)
        for name, value in values.items():
            kind = types.get(name)
            if kind is not None and isinstance(value, dict):
                value = self.validated(kind, value)
            elif kind is not None and isinstance(value, (list, tuple)):
                value = [self.validated(kind, v) if isinstance(v, dict) else v for v in value]
            out.attrs[str(name)] = value
        return out

    def record_call(
        self, holder: Class | Instance, name: str, args: list[Any], named: dict[str, Any]
    ) -> Any:
        """What a record's inherited methods give, or those of a module that only keeps tables;
        `NotImplemented` for any other name.
        """
        if isinstance(holder, Class):
            known = name in {"model_validate", "parse_obj"} and args and isinstance(args[0], dict)
            return self.validated(holder, args[0]) if known else NotImplemented
        if name in {"model_copy", "_replace"}:
            update = named.get("update") if name == "model_copy" else named
            return self.replaced(holder, update if isinstance(update, dict) else {})
        if name in {"model_dump", "dict", "_asdict"} and not args:
            return self.dumped(holder)
        if name == "register_buffer" and holder.cls.kind == "tables" and len(args) > 1:
            holder.attrs[str(args[0])] = args[1]
            return None
        if name in _MOVES and holder.cls.kind == "tables":
            return holder
        return NotImplemented

    def replaced(self, record: Instance, changes: dict[str, Any]) -> Instance:
        """A copy of a record with some fields changed."""
        return Instance(record.cls, {**record.attrs, **changes})

    def dumped(self, value: Any) -> Any:
        if isinstance(value, Instance):
            return {k: self.dumped(v) for k, v in value.attrs.items()}
        return [self.dumped(v) for v in value] if isinstance(value, list) else value

    def plain_json(self, last: str, args: list[Any]) -> Any:
        """`json.loads` and `json.dumps` of values that are wholly known; `NotImplemented`
        otherwise.
        """
        try:
            if last == "loads" and isinstance(args[0], (str, bytes)) and len(args[0]) < _MAX_JSON:
                return json.loads(args[0])
            return (
                json.dumps(args[0])
                if last == "dumps" and isinstance(args[0], (dict, list, str, int, float))
                else NotImplemented
            )
        except (TypeError, ValueError, RecursionError):
            return NotImplemented
