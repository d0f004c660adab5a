"""State that every part of the engine shares, and what it means."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from niblick.audit.flow.boxes import Box, Leaf, core, is_token, snapshot, stream
from niblick.audit.flow.joining import blank
from niblick.audit.flow.lengths import Perhaps
from niblick.audit.flow.objects import (
    Bound,
    CallEvent,
    Class,
    Dotted,
    Function,
    Namespace,
    Trace,
    Where,
)
from niblick.audit.flow.signals import BudgetSignal
from niblick.audit.flow.statistics import Keeps

_NUMBERS = (int, float, bool, type(None), np.generic)
PLAIN = (*_NUMBERS, str, bytes, list, tuple, dict, set, range, PurePosixPath, slice)
SHOWN = "shown:"
"""The mark of what hooks were shown of a model's inside while it was given tokens."""
_ELEMENTS = 13
"""Two to this power of elements are a step of work."""


class State:
    """State that every part of the engine shares, and what it means; the first names are what later
    parts give to earlier ones.
    """

    value: Callable[[ast.expr], Any]
    assign: Callable[[ast.expr, Any], None]
    attribute: Callable[[Any, str, ast.AST], Any]
    item: Callable[[Any, Any, ast.AST], Any]
    iterate: Callable[[Any, int | None], list[Any]]
    around: Callable[[ast.expr], Any]
    block: Callable[[list[ast.stmt]], None]
    store: Callable[[str, Any], None]
    picked_out: Callable[[Box, Box, ast.AST], Box | None]
    call_value: Callable[[Any, list[Any], dict[str, Any], ast.AST], Any]
    call_function: Callable[[Function, list[Any], dict[str, Any], ast.AST], Any]
    opaque: Callable[[list[Any], dict[str, Any], ast.AST], Any]
    score: Callable[..., Box]
    reshaping: Callable[[str, Box, list[Any], dict[str, Any]], Any]
    learning: Callable[[Function], bool]
    observe: Callable[[Function, Any, list[Any], dict[str, Any], ast.AST], Any]
    unpacked: Callable[[Box, Any], Any]
    tried: Callable[[Any, Any], int]
    told: Callable[[Any], int]
    look_on: Callable[[Any, int, ast.AST], None]
    told_weights: Callable[[list[Box]], None]
    record_update: Callable[..., None]
    augment: Callable[..., None]
    reduce: Callable[..., Any]
    import_program: Callable[[str], Namespace | None]
    run_module: Callable[[ast.Module, str, str, dict[str, Any]], None]

    def __init__(
        self, environment: dict[str, str], modules: dict[str, tuple[str, ast.Module]], budget: int
    ) -> None:
        self.environment = environment
        self.modules = modules
        self.loaded: dict[str, Namespace] = {}
        self.budget = budget
        self.trace = Trace()
        self.stream = stream()
        self.leaves: dict[int, Leaf] = {}
        self.disk = Box()
        self.holding: dict[int, tuple[Any, int]] = {}
        self.entered: set[int] = set()
        self.fields = {"weight", "bias"}
        self.handlers: dict[int, list[ast.Call]] = {}
        self.made: set[int] = set()
        self.handed: dict[int, tuple[Function, str]] = {}
        self.adders: set[int] = set()
        self.wrote: set[str] = set()
        self.training: dict[int, bool] = {}
        self.methods: dict[str, list[Function]] = {}
        self.observed: dict[tuple[Any, ...], Any] = {}
        self.patched: dict[str, Any] = {}
        self.contents: dict[str, bytes] = {}
        self.parts: dict[Any, Any] = {}
        self.scopes: list[tuple[dict[str, Any], ...]] = []
        self.outer_names: list[dict[str, str]] = []
        self.maybe_returns: list[list[Any]] = []
        self.yields: list[list[Any]] = []
        self.stack: list[str] = []
        self.defining: Class | None = None
        self.no_grad = 0
        self.uncertain = self.ways = 0
        self.widened = self.laps = 0
        self.forced: dict[int, bool] = {}
        self.decided: dict[tuple[Any, ...], set[tuple[int, bool]]] = {}
        self.sketched: dict[int, int] = {}  # work on the plain turns of each loop
        self.fed: dict[str, Any] = {}  # places of the tokens that forwards were given, by mark
        self.interest = self.touched = self.forwards = 0
        self.cleared = self.stubborn = self.choosing = self.hooked = self.parts_hooked = False
        self.free: dict[int, frozenset[str] | None] = {}
        self.answers: dict[tuple[Any, ...], tuple[Any, int]] = {}
        self.maybe_ended = 0
        self.loop_steps: dict[int, int] = {}
        self.order = self.hooks = self.looking = 0
        self.turning = 0
        self.hooking: list[Any] = []
        self.tries = 0
        self.line = 0
        self.arguments: list[str] = []
        self.native: dict[str, frozenset[int]] = {}
        self.peeking: dict[int, bool] = {}
        self.adapting: dict[int, tuple[frozenset[str], frozenset[str], bool]] = {}
        self.hung: set[str] = set()
        self.loops: list[ast.stmt] = []
        self.adding: list[dict[int, list[Any]]] = []  # by statement of a loop: what a turn adds
        self.keeping: dict[int, Keeps | None] = {}  # when classes gather statistics
        self.kept_for = self.told_by = 0
        self.raised = False
        self.inner_calls: dict[str, int] = {}

    def tick(self, node: ast.AST) -> None:
        self.trace.steps += 1
        self.line = getattr(node, "lineno", self.line)
        if self.trace.steps > self.budget:
            raise BudgetSignal

    def touch(self, value: Any) -> Any:
        """Counts the values that hold anything of the stream, or of what was learnt from it."""
        if isinstance(value, Box):
            stream = value.pos is not None or value.deps or value.targets or value.key is not None
            learnt = value.held or value.scores or value.nll or self.seen(value)
            self.touched += bool(stream or learnt or "val" in value.marks)
        return value

    def charged(self, value: Any) -> Any:
        """Counts the elements that an operation has touched as work."""
        if isinstance(value, Box):
            for array in (value.pos, value.val):
                self.trace.steps += core(array).size >> _ELEMENTS if array is not None else 0
        return value

    def fails(self, text: str) -> None:
        """Notes an exception that the program cannot avoid on this way and does not catch."""
        if self.uncertain <= 0 and not self.tries:
            self.trace.failures.append((self.line, text))

    def note(self, text: str) -> None:
        if len(self.trace.notes) < 200:
            self.trace.notes.append(text)

    def calls_out(self, name: str, node: ast.AST, detail: str = "") -> None:
        """Writes down a call to something outside the program."""
        self.order += 1
        where, certain = self.where(node), self.uncertain <= 0
        event = CallEvent(name=name, where=where, certain=certain, detail=detail, order=self.order)
        self.trace.calls.append(event)

    def where(self, node: ast.AST | None = None) -> Where:
        return Where(
            file=str(self.scopes[-1][-1].get("__file__", "")) if self.scopes else "",
            line=getattr(node, "lineno", self.line),
            function=self.stack[-1] if self.stack else "<module>",
        )

    def new_leaf(self, kind: str, name: str) -> int:
        number = len(self.leaves) + 1
        self.leaves[number] = Leaf(kind, name, self.line)
        return number

    def seen(self, box: Box) -> int:
        """Positions that the parameters behind a value have been trained on, as of now."""
        out = box.seen
        if box.live:
            for root in box.roots:
                out |= self.leaves[root].seen
        return out

    def frozen(self, boxes: list[Box]) -> list[Box]:
        """Boxes with the state of their leaves read now."""
        out = []
        for box in boxes:
            base = box.base
            if box.live or (base is not None and base.held | base.table):
                box = snapshot(box, seen=self.seen(box), options=box.options, base=base)
                if base is not None and not is_token(base):
                    box.held, box.table = box.held | base.held, box.table | base.table
            out.append(box)
        return out

    def lookup(self, name: str) -> Any:
        for scope in self.scopes[-1]:
            if name in scope:
                return scope[name]
        return Dotted(f"builtins.{name}")

    def truth(self, value: Any) -> bool | None:
        """True, False, or None where it cannot be known."""
        if isinstance(value, Box):
            counted = "bytes" in value.marks and value.pos is not None
            if value.scores or counted or "guess" in value.marks:
                return None
            if value.val is not None and value.val.size == 1:
                return bool(value.val.reshape(-1)[0])
            return None
        if isinstance(value, Dotted):
            return None if value.name.startswith("?") else True
        part = isinstance(value, Bound) and isinstance(value.holder, Box) and blank(value.holder)
        if part or isinstance(value, Perhaps):
            return None
        if isinstance(value, PLAIN):
            return bool(value)
        return True

    def plain_key(self, key: Any) -> Any:
        """A dictionary key: known content where there is some, else one slot for all unknown
        keys.
        """
        if isinstance(key, Box):
            if key.val is not None and key.val.size == 1:
                return key.val.reshape(-1)[0].item()
            return "?"
        if isinstance(key, Bound):
            return "?"
        if isinstance(key, tuple):
            return tuple(self.plain_key(k) for k in key)
        try:
            hash(key)
        except TypeError:
            return "?"
        return key
