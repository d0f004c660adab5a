"""Attributes, items and iteration of shadow values, and how learnable leaves are updated."""

from __future__ import annotations

import ast
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from niblick.audit.flow.access_index import (
    RAW,
    SMALL,
    any_of,
    is_large,
    numbers_of,
    of_bytes,
    plain_index,
    row,
    split_marks,
    subscript,
    table_of,
    taken,
    weighs,
)
from niblick.audit.flow.boxes import (
    GUESS,
    STREAM,
    Box,
    collect,
    depends,
    elementwise,
    is_token,
    known,
    merge,
    shaped,
    snapshot,
    target_bits,
    witness,
)
from niblick.audit.flow.figures import PICKED
from niblick.audit.flow.joining import view
from niblick.audit.flow.keeping import ALONE, ALPHABET
from niblick.audit.flow.lengths import RankText, cut_by, is_split, length_of
from niblick.audit.flow.narrowing import ALTERED
from niblick.audit.flow.objects import (
    KNOWN,
    Bound,
    Class,
    Dotted,
    Function,
    Instance,
    KeyEvent,
    Module,
    Namespace,
    Optimizer,
)
from niblick.audit.flow.spaces import says_yes_or_no
from niblick.audit.flow.trials import picked, throughout
from niblick.audit.flow.writing import Writing, by_token, place_in
from niblick.audit.words import ordered, words

_LAUNCHER = ordered("MASTER_ LOCAL_ GROUP_ TORCHELASTIC CUDA_ SLURM_ HOME USER PATH TMP")
_VIEWS = frozenset({"T", "mT", "H", "real", "data"})
_SIMPLE: dict[str, Any] = {"ndim": len, "shape": tuple}


class Access(Writing):
    """Reading and writing parts of values."""

    def attribute(self, holder: Any, name: str, node: ast.AST) -> Any:
        if isinstance(holder, Dotted):
            return self.dotted_attribute(holder, name)
        if isinstance(holder, Box):
            return self.box_attribute(holder, name)
        if isinstance(holder, (Instance, Module)):
            return self.object_attribute(holder, name, node)
        if isinstance(holder, Namespace):
            return holder.attrs[name] if name in holder.attrs else Bound(holder, name)
        if isinstance(holder, Class):
            found = holder.find(name)
            if isinstance(found, Function):
                return Bound(holder, name, found) if "classmethod" in found.marks else found
            other = holder.name if name == "__name__" else Bound(holder, name)
            return other if found is None else found
        if isinstance(holder, PurePosixPath) and name in {"name", "stem", "suffix", "parent"}:
            return getattr(holder, name)
        if isinstance(holder, tuple) and len(holder) == 2 and name in {"values", "indices"}:
            return holder[name == "indices"]
        if isinstance(holder, Function) and name == "__name__":
            return holder.name
        if isinstance(holder, Optimizer) and name in {"param_groups", "state"}:
            return [{"params": [self.param_box(holder.roots)], "lr": Box(shape=())}]
        return Bound(holder, name)

    def dotted_attribute(self, holder: Dotted, name: str) -> Any:
        full = f"{holder.name}.{name}"
        if full in self.patched:
            return self.patched[full]
        if full in KNOWN:
            return KNOWN[full]
        if full == "sys.argv":
            return ["script", *self.arguments]
        return Dotted(full)

    def param_box(self, roots: frozenset[int]) -> Box:
        """A parameter (or all of them) of some leaves: it follows their state."""
        return Box(roots=roots, live=True, marks=frozenset({"param"}))

    def box_attribute(self, box: Box, name: str) -> Any:
        if name == "grad" and box.live:
            positions = 0
            for root in box.roots:
                positions |= self.leaves[root].grad
            return Box(shape=box.shape, seen=positions, roots=box.roots, marks=frozenset({"grad"}))
        if name in _SIMPLE:
            if box.shape is None:
                return Box(deps=0)
            return _SIMPLE[name](
                tuple(Box(shape=()) if s is None else length_of(box, s) for s in box.shape)
            )
        if name in {"T", "mT"}:
            return view(shaped(box, lambda a: a.T), box)
        if name == "ctypes" and not is_token(box):
            box.val = None  # whoever has its address may write there
        if name in _VIEWS or name == "ctypes":
            return box
        if box.live and "param" in box.marks and name in self.fields:
            return box
        if name in {"requires_grad", "is_cuda", "dtype", "device", "nbytes", "itemsize"}:
            return Box(shape=())
        return Bound(box, name)

    def object_attribute(self, holder: Instance | Module, name: str, node: ast.AST) -> Any:
        if name in holder.attrs:
            return holder.attrs[name]
        cls = holder.cls
        found = cls.find(name) if cls is not None else None
        if isinstance(found, Function):
            if "property" in found.marks or "cached_property" in found.marks:
                return self.call_function(found, [holder], {}, node)
            if "staticmethod" in found.marks:
                return found
            return Bound(holder, name, found)
        if found is not None or (cls is not None and cls.holds(name)):
            return found
        if name in {"__dict__"}:
            return holder.attrs
        if name == "__class__":
            return cls or Dotted("?")
        getter = cls.find("__getattr__") if cls is not None else None
        if isinstance(getter, Function) and isinstance(holder, Instance):
            return self.call_function(getter, [holder, name], {}, node)
        if isinstance(holder, Module):
            if name in {"module", "_orig_mod"}:
                return holder
            if name.startswith("__"):
                return Bound(holder, name)
            kept = holder.settings
            return kept[name] if name in kept else self.submodule(holder, name)
        base = next((b for b in (cls.bases if cls else ()) if isinstance(b, Dotted)), None)
        return Bound(holder, name) if base is None or name.islower() else Box()

    def submodule(self, holder: Module, name: str) -> Any:
        if name in words(
            "parameters named_parameters state_dict load_state_dict to cuda cpu eval train"
            " forward bfloat16 float half double zero_grad requires_grad_ modules named_modules"
            " apply children register_forward_hook buffers named_buffers compile no_sync"
            " generate register_buffer add_module register_forward_pre_hook named_children"
            " register_parameter get_parameter get_submodule"
        ):
            return Bound(holder, name)
        if name == "training":
            return Box(shape=())
        return self.param_box(frozenset({holder.leaf}))

    def item(self, holder: Any, key: Any, node: ast.AST) -> Any:
        found = self.entry(holder, key, node)
        picks = key if isinstance(key, Box) and "train" not in key.marks else Box()
        if "index" in picks.marks and is_token(picks) and is_token(holder) and is_split(holder):
            return snapshot(found, marks=found.marks | {ALTERED})  # picked by what they are
        if picks.scores or any(m.startswith(PICKED) for m in picks.marks):
            return throughout(found, picked, target_bits(picks) | picks.seen, self.line)
        return found

    def entry(self, holder: Any, key: Any, node: ast.AST) -> Any:
        if isinstance(holder, Box):
            return self.box_item(holder, key, node)
        if isinstance(holder, dict):
            return self.dict_item(holder, key, node, None)
        if isinstance(holder, list) and by_token(key):
            return self.listed(holder, key, node)
        if isinstance(holder, (list, tuple, str, bytes, range)):
            return self.sequence_item(holder, key)
        if isinstance(holder, Dotted):
            if holder.name.endswith("environ") and isinstance(key, str):
                return self.environ(key, None, required=True)
            return Dotted("?") if not holder.name.startswith("builtins") else holder
        if isinstance(holder, Function):
            return Bound(holder, "__launch__")
        if isinstance(holder, Namespace):
            return holder.attrs.get(key, Box()) if isinstance(key, str) else Box()
        if isinstance(holder, Module):
            return self.param_box(frozenset({holder.leaf}))
        if isinstance(holder, Instance):
            if holder.cls.is_row and type(key) is int and key < len(holder.attrs):
                return list(holder.attrs.values())[key]
            method = holder.cls.find("__getitem__")
            if isinstance(method, Function):
                return self.call_function(method, [holder, key], {}, node)
        return merge(self.frozen(collect(holder) + collect(key)))

    def listed(self, holder: list[Any], key: Box, node: ast.AST) -> Any:
        """An entry of a list that is chosen by a token: counts, or a table of numbers."""
        if held := self.kept(holder):
            return self.counted(self.with_held(self.sequence_item(holder, key), held), [key])
        if all(isinstance(v, (int, float)) for v in holder[:SMALL]) and len(holder) > 1:
            return self.looked_up(known(holder), [key], [key], node)
        return self.sequence_item(holder, key)

    def environ(self, key: str, default: Any, *, required: bool = False) -> Any:
        """What a variable is in the documented run; `required` where nothing stands in for it."""
        if key in self.environment:
            return self.environment[key]
        if key in {"RANK", "LOCAL_RANK", "NODE_RANK"}:
            return RankText("0")
        return Box() if required or (default is None and key.startswith(_LAUNCHER)) else default

    def dict_item(self, holder: dict[Any, Any], key: Any, node: ast.AST, default: Any) -> Any:
        plain = self.plain_key(key)
        value = self.with_held(holder.get(plain, holder.get("?", default)), self.kept(holder))
        boxes = [b for b in collect(key) if is_token(b)]
        if not boxes:
            absent = Box(marks=split_marks(key)) if default is None else default
            return value if value is not None or plain in holder else absent
        table = None if "?" in holder or self.kept(holder) else table_of(holder)
        if isinstance(key, Box) and table is not None:
            return self.looked_up(table, [key], [key], node)
        return self.counted(value, boxes)

    def counted(self, value: Any, key_boxes: list[Box]) -> Any:
        """What was read from a table of counts, remembering the newest token in its key."""
        if isinstance(value, (dict, list, Instance, Module)):
            return value
        newest = elementwise(key_boxes)
        marks = (
            frozenset({"hashed"})
            if len(key_boxes) > 1 or newest.marks & {"hashed", "mixed"}
            else frozenset()
        )
        base = known(value) if value is not None else Box(shape=())
        return snapshot(
            base,
            val=None,
            key=newest.pos,
            marks=base.marks | marks | {"count"},
            deps=base.deps | newest.deps,
        )

    def sequence_item(self, holder: Any, key: Any) -> Any:
        if isinstance(key, Box) and key.val is not None and key.val.size == 1:
            key = int(key.val.reshape(-1)[0])
        if isinstance(key, np.integer):
            key = int(key)
        if isinstance(key, slice):
            parts = [plain_index(p) for p in (key.start, key.stop, key.step)]
            if any(isinstance(p, Box) for p in parts):
                return list(holder)[:64] if isinstance(holder, (list, tuple)) else Box()
            return holder[slice(*parts)]
        if isinstance(key, int):
            try:
                return holder[key]
            except IndexError:
                return Box()
        return any_of(list(holder)[:8]) if isinstance(holder, (list, tuple)) and holder else Box()

    def box_item(self, box: Box, key: Any, node: ast.AST) -> Any:
        if box.shape == () and box.scores and isinstance(key, int):
            return box  # what a model returns is one value here, be it a loss in a tuple
        if box.cells and (place := place_in(box, key)) >= 0:
            cell = box.cells.get(place)
            return row(numbers_of(box), place) if cell is None else view(snapshot(cell), box)
        if RAW in box.marks:
            return of_bytes(box, key)
        if (part := self.unpacked(box, key)) is not None:
            return part
        if split_marks(key) and box.pos is None and not box.roots:
            return merge([box], marks=box.marks | {"validation"})
        parts = list(key) if isinstance(key, tuple) else [key]
        tokens = [
            p for p in parts if isinstance(p, Box) and is_token(p) and p.marks.isdisjoint({"index"})
        ]
        if tokens and not (is_token(box) and box.pos is not None):
            return self.looked_up(box, parts, tokens, node)
        if any(isinstance(p, Box) and p.scores for p in parts):
            box = self.warp(snapshot(box), "positions are chosen by their scores")
        index = tuple(subscript(p) for p in parts)
        if any(i is None for i in index[:]) and any(
            p is not None and subscript(p) is None for p in parts
        ):
            unknown = snapshot(box, pos=None, val=None, key=None, shape=None)
            if box.val is not None and weighs(box) and (box.val.size > 1 or "guess" in box.marks):
                unknown.val, unknown.marks = np.asarray(GUESS), unknown.marks | {"guess"}
            unknown.deps |= depends(box) if box.pos is not None and self.widened == 0 else 0
            if box.pos is not None:
                unknown.targets |= target_bits(box)
                unknown.marks |= {"somewhere"}
            unknown.live = box.live
            counts = [isinstance(p, Box) and p.key is not None for p in parts]
            by_counts = all(counts) and is_token(box) and parts[0].shape == box.shape
            ways = all(p is None or isinstance(p, (Box, slice)) for p in parts)
            if by_counts or (box.key is not None and ways):
                unknown.key, unknown.pos, unknown.shape = box.key, box.pos, box.shape
            return unknown
        if box.nll and box.shape and box.shape[0] == 1 and isinstance(key, slice) and key.start:
            box = shaped(box, lambda a: a.reshape(-1))
        out = cut_by(box, shaped(box, lambda a: taken(a, index)), key)
        out.live = box.live
        if all(p is None or p is Ellipsis or isinstance(p, (int, slice)) for p in parts):
            view(out, box)
        if out.val is None and "guess" in box.marks and box.val is not None and weighs(box):
            out.val = np.asarray(GUESS)
        return out

    def looked_up(self, box: Box, parts: list[Any], tokens: list[Box], node: ast.AST) -> Box:
        """A table, or a distribution, indexed by stream tokens."""
        newest = elementwise(tokens)
        source = self.frozen([box])[0]
        if source.roots and source.marks.isdisjoint({"param"}):
            return self.score(source, newest, node, picked=True)
        out = merge([source], shape=newest.shape)
        out.deps |= depends(newest)
        key = newest if len(tokens) == 1 else elementwise(tokens[:-1])
        empty = box.val is not None and box.val.size > SMALL and not box.val.any()
        empty |= box.val is None and "zeros" in box.marks and is_large(box)
        rows = not source.roots and len(box.shape or ()) > len(parts)
        counts = source.table & 1 or "count" in source.marks or rows
        if counts or (empty and "flags" not in box.marks):
            out.key, out.deps = key.pos, source.deps | newest.deps
            out.marks |= (key.marks & {"hashed"}) | {"count"} | (newest.marks & {ALPHABET})
            if ALPHABET in source.marks:
                out.marks |= {ALONE}
        elif not source.roots:
            out.marks |= {"bytes", "space"} if says_yes_or_no(source) else {"bytes"}
            out.val = witness(newest.pos)
            out.marks |= {"guess"} if newest.pos is None else set()
            out.key = key.pos if "hashed" in key.marks else None
            out.marks |= key.marks & {"hashed"}
        if out.key is not None:
            self.interest += 1
        return out

    def iterate(self, value: Any, count: int | None) -> list[Any]:
        """The items of a value; for an unknown one, `count` copies (or two) of what is known of
        it.
        """
        if isinstance(value, (list, tuple, dict)):
            return list(value)
        if isinstance(value, range):
            return list(value[:100_000])
        if isinstance(value, (str, bytes)):
            return list(value[:2000])
        if isinstance(value, set):
            return sorted(value, key=str)
        if isinstance(value, Instance):
            return self.iterate_instance(value, count)
        if isinstance(value, Box):
            if value.shape and value.shape[0] is not None and value.shape[0] <= STREAM:
                size = value.shape[0] if count is None else min(count, value.shape[0])
                if value.cells:
                    return [self.box_item(value, i, ast.Pass()) for i in range(size)]
                if value.val is not None or value.pos is not None:
                    return [row(value, i) for i in range(min(size, 8192))]
                return [row(value, i) for i in range(min(size, 6))]
            parts = snapshot(value, shape=None)
            parts.live = value.live
            return [parts] * (count or 2)
        if isinstance(value, Module):
            return [value] * (count or 2)
        return [merge(collect(value))] * (count or 2)

    def iterate_instance(self, value: Instance, count: int | None) -> list[Any]:
        if value.cls.is_row:
            return list(value.attrs.values())
        for name in ("__iter__", "__next__"):
            method = value.cls.find(name)
            if isinstance(method, Function):
                result = self.call_function(method, [value], {}, method.node)
                if name == "__iter__" and result is not value:
                    return self.iterate(result, count)
                if name == "__next__":
                    return [result] * 3
        getter = value.cls.find("__getitem__")
        if isinstance(getter, Function):
            return [self.call_function(getter, [value, i], {}, getter.node) for i in range(3)]
        return [merge(collect(value))] * (count or 2)


__all__ = ["Access", "KeyEvent"]
