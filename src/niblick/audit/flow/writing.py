"""Writing to shadow values: assignments to attributes and items, and what learnable leaves gain."""

from __future__ import annotations

import ast
import re
import sys
from typing import Any

import numpy as np

from niblick.audit.flow.access_index import plain_index, subscript
from niblick.audit.flow.boxes import (
    MAX_ELEMENTS,
    Box,
    collect,
    is_token,
    known,
    merge,
    snapshot,
    target_bits,
)
from niblick.audit.flow.expressions import Expressions
from niblick.audit.flow.objects import (
    Class,
    Dotted,
    Function,
    Instance,
    Module,
    Namespace,
    ReplacedEvent,
    UpdateEvent,
)
from niblick.audit.flow.state import SHOWN

_VALIDATION_NAME = re.compile(
    r"^_?(?:val|valid|validation|eval|test|holdout)_?(?:tokens?|data|ids|stream|toks)(?:_\w*)?$"
)

_CELLS = 16
_ALONE = 3
"""References to an array that one value has: the value's, a local name's, and the counter's."""


class Writing(Expressions):
    """Writing to shadow values: assignments to attributes and items, and what learnable leaves
    gain.
    """

    def set_attribute(self, holder: Any, name: str, value: Any, node: ast.AST) -> None:
        if isinstance(holder, (Instance, Module, Namespace)):
            attrs = holder.attrs
            if (
                isinstance(holder, Module)
                and isinstance(value, Module)
                and value.leaf != holder.leaf
                and value.cls is None
            ):
                value.leaf = holder.leaf
            attrs[name] = self.seed_by_name(name, value)
            if isinstance(holder, Module) and not isinstance(value, Module):
                self.leaves[holder.leaf].seen |= merge(self.frozen(collect(value))).held
        elif isinstance(holder, Class):
            holder.body[name] = value
        elif isinstance(holder, Box):
            if name == "data" and holder.live:
                self.update_param(holder, collect(value), node, replace=True)
            elif name in {"grad"} and holder.live:
                for root in holder.roots:
                    for box in collect(value):
                        self.leaves[root].grad |= box.seen
            elif not holder.live:
                extra = merge(self.frozen(collect(value)))
                holder.seen |= extra.seen
        elif isinstance(holder, Dotted):
            self.patch(f"{holder.name}.{name}", value, node)

    def patch(self, name: str, value: Any, node: ast.AST) -> None:
        """A name of a library is given another value."""
        self.patched[name] = value
        self.trace.replaced.append(
            ReplacedEvent(
                name=name, where=self.where(node), followed=isinstance(value, (Function, Dotted))
            )
        )

    def seed_by_name(self, name: str, value: Any) -> Any:
        """A value nothing is known of, under a name that says it holds validation tokens, is the
        stream.
        """
        if not isinstance(value, Box) or not _VALIDATION_NAME.match(name):
            return value
        known = value.pos is not None or value.val is not None or value.shape is not None
        made = value.deps or value.roots or value.seen or value.marks & {"train", "count"}
        return value if known or made else self.stream

    def update_param(
        self, holder: Box, sources: list[Box], node: ast.AST, replace: bool = False
    ) -> None:
        """An in-place change of parameters: they now carry what the new values had been trained
        on.
        """
        gained = held = 0
        marks: frozenset[str] = frozenset()
        self.told_weights(sources)
        for source in self.frozen(sources):
            held |= source.held
            told = source.marks & {"grad"} or told_by(source)
            gained |= source.seen | source.held | (target_bits(source) if told else 0)
            marks |= source.marks
        for root in holder.roots:
            leaf = self.leaves[root]
            fresh = gained if told_by(Box(marks=marks)) else gained & ~leaf.seen
            if replace and sources:
                leaf.seen = gained
            leaf.seen |= gained
            if fresh and (marks & {"grad", "tested"} or held & fresh):
                self.record_update(frozenset({root}), fresh, node, marks)

    def record_update(
        self, roots: frozenset[int], positions: int, node: ast.AST | None, marks: frozenset[str]
    ) -> None:
        self.interest += 1
        self.order += 1
        leaves = [self.leaves[r] for r in roots]
        self.trace.updates.append(
            UpdateEvent(
                order=self.order,
                positions=positions,
                leaf_kinds=frozenset(leaf.kind for leaf in leaves),
                names=frozenset(leaf.name for leaf in leaves),
                where=self.where(node),
                certain=self.uncertain <= 0,
                widened=bool(self.widened),
                marks=marks,
            )
        )

    def set_item(self, holder: Any, key: Any, value: Any, node: ast.AST) -> None:
        if isinstance(holder, dict):
            place = self.plain_key(key)
            holder[place] = self.either(holder.get(place), value)
            self.keep(holder, key, value)
        elif isinstance(holder, list):
            if by_token(key):
                self.keep(holder, key)
            index = plain_index(key) if not isinstance(key, slice) else None
            if isinstance(index, (int, np.integer)) and -len(holder) <= index < len(holder):
                holder[int(index)] = value
            elif len(holder) < 64:
                holder.append(value)
            elif index is None or isinstance(index, Box):
                holder[-1] = value  # somewhere
        elif isinstance(holder, Box):
            self.box_set_item(holder, key, value, node)
            self.shared(holder)
        elif (
            isinstance(holder, Dotted) and holder.name.endswith("environ") and isinstance(key, str)
        ):
            if isinstance(value, str):
                self.environment[key] = value
        elif isinstance(holder, Instance):
            method = holder.cls.find("__setitem__")
            if isinstance(method, Function):
                self.call_function(method, [holder, key, value], {}, node)

    def either(self, old: Any, new: Any) -> Any:
        """What an entry holds that one way of an unknown condition has written after another: what
        hooks have seen may be in it still.
        """
        marks = old.marks if isinstance(old, Box) else frozenset()
        shown = {mark for mark in marks if mark.startswith(SHOWN)}
        if not (shown and self.ways and isinstance(new, Box)):
            return new
        return snapshot(self.frozen([new])[0], marks=new.marks | shown)

    def box_set_item(self, box: Box, key: Any, value: Any, node: ast.AST) -> None:
        if box.live:
            keys = [p for p in (key if isinstance(key, tuple) else [key]) if isinstance(p, Box)]
            held = Box(held=self.written([k for k in keys if "index" not in k.marks]))
            self.update_param(box, [*collect(value), held], node)
            return
        source = merge(self.frozen(collect(value)))
        new = (
            self.frozen([known(value)])[0] if not isinstance(value, (Instance, Module)) else source
        )
        place = place_in(box, key)
        fresh = box.cells or (None if box.scores or place < 0 else {})
        box.cells = None if fresh is None or place < 0 else {**fresh, place: snapshot(new)}
        parts = list(key) if isinstance(key, tuple) else [key]
        keyed = any(by_token(p) for p in parts)
        box.table |= keyed and not is_token(box)
        index = tuple(subscript(p) for p in parts)
        unknown = any(subscript(p) is None and p is not None for p in parts)
        if not unknown and len(parts) == 1 and isinstance(index[0], int) and new.held and not keyed:
            newest = new.held.bit_length() - 1
            new = snapshot(new, pos=np.maximum(newest, -1 if new.pos is None else new.pos))
        else:
            self.hold(box, [p for p in parts if isinstance(p, Box)], [*collect(value), source])
        box.seen |= source.seen
        box.roots |= source.roots
        box.scores |= source.scores
        placed = {"somewhere"} if box.nll and box.pos is not None else set()
        box.marks |= source.marks - {"val", "numpy"} - placed
        self.gated(box, parts)
        box.nll = box.nll or new.nll
        if unknown and new.val is not None and new.val.dtype.kind == "b":
            box.marks |= {"index"}  # flags that data have set
        if unknown or box.shape is None or None in box.shape:
            self.spread(box, new, source)
            return
        for name in ("pos", "key"):
            if name == "key" or new.pos is not None or not (box.nll and _told(new)):
                self.place(box, name, index, getattr(new, name))
        if box.val is not None:
            try:
                box.val = _unshared(box, "val")
                box.val[index] = new.val if new.val is not None else 1
            except (ValueError, IndexError, TypeError):
                box.val = None
            if new.val is None and new.pos is None:
                box.val = None
        if new.pos is None:
            box.deps |= source.deps
            box.targets |= source.targets

    def hold(self, box: Box, keys: list[Box], values: list[Box]) -> None:
        """What an array holds once values have been written to it under keys."""
        if any(by_token(key) for key in keys):
            box.held |= self.written([*keys, *values])
        box.held |= merge([*keys, *values]).held

    def spread(self, box: Box, new: Box, source: Box) -> None:
        """An assignment to unknown places."""
        same = box.shape is not None and new.shape == box.shape
        for name in ("pos", "key"):
            array = getattr(new, name)
            if array is not None and (same or box.shape is None):
                setattr(box, name, array)
        if (
            new.pos is not None
            and not same
            and box.shape is not None
            and box.pos is None
            and new.pos.shape == box.shape[: new.pos.ndim]
        ):
            box.pos = new.pos
        box.deps |= source.deps
        box.targets |= source.targets
        box.val = None

    def place(self, box: Box, name: str, index: Any, new: Any) -> None:
        """Writes per-element knowledge of an assigned value into the array it is assigned to."""
        array = getattr(box, name)
        if new is None and array is None:
            return
        if array is None:
            size = int(np.prod([int(s or 0) for s in box.shape or ()]))
            if size > MAX_ELEMENTS:
                return
            array = np.full(tuple(int(s or 0) for s in box.shape or ()), -1, dtype=np.int64)
        else:
            array = None
            array = _unshared(box, name)
        try:
            array[index] = -1 if new is None else new
        except (ValueError, IndexError, TypeError):
            if new is not None and name == "pos":
                box.deps |= merge([Box(pos=new)]).deps
        setattr(box, name, array)


def _told(value: Box) -> bool:
    """Whether a value of unknown place was made of scores, or of counts that were read for them, so
    that it may stand for the scores it takes the place of.
    """
    return bool(value.scores) or value.key is not None


def place_in(box: Box, key: Any) -> int:
    """The place of an entry in a short row of numbers; -1 where it is none of that."""
    size = box.shape[0] if box.shape and len(box.shape) == 1 else None
    return key % size if size and size <= _CELLS and type(key) is int else -1


def by_token(key: Any) -> bool:
    """Whether an entry is chosen by a token, not by a number."""
    return isinstance(key, Box) and is_token(key) and "index" not in key.marks


def told_by(value: Box) -> bool:
    """Whether a value was chosen by what scores of validation tokens are."""
    return "tested" in value.marks and "train" not in value.marks


def _unshared(box: Box, name: str) -> Any:
    """An array of a value that may be written to: the array itself if nothing else refers to it,
    as views and copies of the value would, else a copy.
    """
    array = getattr(box, name)
    alone = sys.getrefcount(array) <= _ALONE and array.flags.owndata and array.flags.writeable
    return array if alone else array.copy()
