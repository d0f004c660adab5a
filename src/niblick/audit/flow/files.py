"""Files of the interpreted program: data shards, saved models, small plain files."""

from __future__ import annotations

import ast
import re
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

from niblick.audit.flow.access_index import HEADER, as_bytes, header
from niblick.audit.flow.boxes import STREAM, WITNESS, Box, collect, merge, snapshot
from niblick.audit.flow.objects import Module, Namespace
from niblick.audit.flow.paths import path_kind
from niblick.audit.flow.tensors import Tensors

_WEIGHTS = frozenset({".pt", ".pth", ".ptz", ".safetensors"})
"""Ends of files that hold weights where the program has written them."""


class Files(Tensors):
    """Files of the interpreted program: data shards, saved models, small plain files."""

    def read_data(self, path: Any, named: dict[str, Any]) -> Box:
        """What reading an array from a path gives: the stream, training tokens, or the disk."""
        text = str(path) if isinstance(path, (str, PurePosixPath)) else ""
        own = ("?" if "?" in text else text) in self.wrote
        weights = own and PurePosixPath(text).suffix in _WEIGHTS
        kind = path_kind(text) if text and not weights else None
        count = named.get("count")
        if isinstance(count, int) and 0 < count <= 1024:
            return header(count)
        if re.search(r"bytes|lengths", PurePosixPath(text).name):
            marks = frozenset({"bytes", "numpy"})
            return Box(shape=(STREAM,), val=WITNESS[:STREAM], marks=marks)
        if kind == "val":
            return snapshot(self.stream, marks=frozenset({"val", "numpy"}))
        if kind == "train":
            return Box(shape=(STREAM,), marks=frozenset({"train", "numpy"}))
        out = merge(collect(path))
        if "validation" in out.marks:
            return snapshot(self.stream, marks=frozenset({"val", "numpy"}))
        out.seen |= self.disk.seen
        out.held |= self.disk.held
        own = not text or "?" in text or bool(self.wrote & {text, "?"})
        out.marks |= {"file"} if own else {"file", "foreign"}
        return out

    def writes(self, path: Any) -> None:
        """The program writes a file (`?`: one whose name is not known)."""
        text = str(path) if isinstance(path, (str, PurePosixPath)) else "?"
        self.wrote.add("?" if "?" in text else text)

    def to_disk(self, values: list[Any]) -> None:
        """Values are written to some file; files are not told apart."""
        boxes = self.frozen(collect(values))
        self.disk.seen |= merge(boxes).seen
        self.disk.held |= self.written(boxes)

    def py_open(self, args: list[Any], named: dict[str, Any], node: ast.AST) -> Any:
        path = str(args[0]) if args and isinstance(args[0], (str, PurePosixPath)) else ""
        mode = str(args[1]) if len(args) > 1 else str(named.get("mode", "r"))
        if mode[:1] in {"w", "a", "x"} or "+" in mode:
            self.writes(path or "?")
        if "w" in mode:
            self.contents.pop(path, None)
        at = len(self.contents.get(path, b"")) if "a" in mode else 0
        plain = "b" not in mode and not PurePosixPath(path).suffix
        return Namespace({"__path__": path, "__at__": at, "__plain__": plain})

    def file_call(self, attrs: dict[str, Any], name: str, args: list[Any]) -> Any:
        """A method of an open file: small plain content is kept by path, the rest goes to the disk
        as a whole.
        """
        path, at = attrs["__path__"], attrs.get("__at__", 0)
        old = self.contents.get(path)
        if name == "seek":
            attrs["__at__"] = args[0] if args and isinstance(args[0], int) else 0
            return None
        if name in {"write", "writelines"}:
            if (
                args
                and isinstance(args[0], bytes)
                and len(args[0]) < 4096
                and len(old or b"") < 65_536
            ):
                self.contents[path] = (
                    (old or b"")[:at] + args[0] + (old or b"")[at + len(args[0]) :]
                )
                attrs["__at__"] = at + len(args[0])
            self.to_disk(args)
            return None
        if name == "read" and old is not None:
            count = args[0] if args and isinstance(args[0], int) else len(old)
            attrs["__at__"] = at + count
            return old[at : at + count]
        if attrs.get("__plain__") and name.startswith("read"):
            return self.read_data("", {})  # text by a name without an ending is no data
        count = args[0] if args and isinstance(args[0], int) else 0
        if not name.startswith("read"):
            return None
        if name == "read" and path_kind(path) and 0 < count <= HEADER:
            attrs["__at__"] = at + count
            return self.read_data(path, {"count": -(-count // 4)})
        data = self.read_data(path, {})
        return as_bytes(data) if name == "read" and not at else data

    def path_call(self, last: str, args: list[Any]) -> Any:
        first = str(args[0]) if args and isinstance(args[0], (str, PurePosixPath)) else None
        if last in {"exists", "isfile", "isdir", "islink"}:
            return Box(shape=())
        if first is None:
            return Box()
        path = PurePosixPath(first)
        parts: dict[str, Any] = {
            "basename": path.name,
            "dirname": str(path.parent),
            "getsize": 1024 + 2 * STREAM,
            "splitext": (str(path.with_suffix("")), path.suffix) if path.name else (first, ""),
        }
        return parts.get(last, first)

    def loaded_data(self, name: str, last: str, args: list[Any], named: dict[str, Any]) -> Any:
        if last == "fromfile" and len(args) > 2:
            named = {**named, "count": args[2]}
        source = args[0] if args else named.get("filename", "")
        if isinstance(source, Namespace):
            source = source.attrs.get("__path__", "")
        if isinstance(source, Box) and "validation" in source.marks:
            return self.read_data(source, {})
        if isinstance(source, Box):
            out = merge(self.frozen([source]))
            out.seen |= self.disk.seen
            out.held |= self.disk.held
            return out
        return self.read_data(source, named)

    def packed(self, value: Any) -> None:
        """What is saved under a name comes back by that name, unless two things have it."""
        for name, part in value.items() if isinstance(value, dict) else ():
            plain = not any(b.roots or b.targets or b.held or b.scores for b in collect(part))
            again = name in self.parts
            self.parts[name] = None if again or not plain or not collect(part) else part

    def unpacked(self, box: Box, name: Any) -> Any:
        """A part of a file that the program wrote, by its name; None where it is not known."""
        ours = "file" in box.marks and "foreign" not in box.marks
        return self.copied(self.parts.get(name)) if ours and isinstance(name, str) else None

    def saved(self, args: list[Any]) -> None:
        self.to_disk(args)
        self.told_weights([box for box in collect(args) if box.marks & {"param", "file"}])
        self.packed(args[0])
        self.writes(args[-1] if isinstance(args[-1], (str, PurePosixPath)) else args[0])
        for box in self.frozen(collect(args)):
            self.disk.seen |= self.seen(box) | box.seen
        for arg in args:
            for part in collect(arg):
                part.seen |= self.disk.seen if not part.live else 0
            if isinstance(arg, Module):
                self.disk.seen |= self.leaves[arg.leaf].seen

    def copied(self, value: Any) -> Any:
        """A deep copy: a copied model is a new leaf that knows what the old one knew."""
        if isinstance(value, Module):
            number = self.new_leaf(self.leaves[value.leaf].kind, self.leaves[value.leaf].name)
            self.leaves[number].seen = self.leaves[value.leaf].seen
            return replace(value, leaf=number, attrs=dict(value.attrs))
        if isinstance(value, Box):
            return snapshot(self.frozen([value])[0])
        if isinstance(value, dict):
            return {k: self.copied(v) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.copied(v) for v in value]
        return value
