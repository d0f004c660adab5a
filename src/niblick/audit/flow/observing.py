"""A look into a model's own method: what it makes of the losses that it returns.

The method is run once on the side, over copies: whatever it does is undone afterwards, and only
what its losses come to is kept.
"""

from __future__ import annotations

import ast
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from niblick.audit.flow.boxes import (
    Box,
    collect,
    depends,
    mean_witness,
    merge,
    snapshot,
    target_bits,
    witness,
)
from niblick.audit.flow.containers import Containers
from niblick.audit.flow.figures import LOST, WARP
from niblick.audit.flow.objects import Class, Function, Instance, Module, Namespace, Trace
from niblick.audit.flow.signals import AbortSignal, BreakSignal, ContinueSignal, ReturnSignal
from niblick.audit.reads import CASTS, name_of

_SETTINGS = (bool, int, float, str, type(None), Instance, Namespace, Class)


@dataclass(frozen=True)
class Observed:
    """How the losses that a method returns differ from plain ones (empty if they do not, or if it
    does not tell), what lost their content, whether they are a `single` number (None: not known),
    and how many `parts` it returns where no loss is in them (0: there may be one); `each` says so
    of every value by itself where several are returned and some are losses.
    """

    why: str = ""
    lost: str = ""
    single: bool | None = None
    parts: int = 0
    each: tuple[Observed, ...] = ()


class Observing(Containers):
    """Runs a method of a model on the side, and reads the settings that a model keeps."""

    def observe(
        self,
        method: Function,
        module: Module,
        args: list[Any],
        named: dict[str, Any],
        node: ast.AST,
    ) -> Observed:
        """What a method makes of its losses, called with switches as they are."""
        given = (*args, *((k, v) for k, v in sorted(named.items())))
        switches = tuple((i, v) for i, v in enumerate(given) if not collect(v))
        key = (id(method.node), str(module.attrs.get("training")), str(switches)[:200])
        if key not in self.observed and self.no_grad > 0:
            self.observed[key] = Observed()
            copies = [snapshot(a) if isinstance(a, Box) else a for a in args]
            self.observed[key] = self.on_the_side(method, [module, *copies], named, node)
        found = self.observed.get(key)
        return found if isinstance(found, Observed) else Observed()

    def settings_of(self, cls: Class, init: Function, given: dict[str, Any]) -> dict[str, Any]:
        """The plain values, and objects of settings, that the constructor of a model, called with
        these names, and nothing else of its class, keeps under names of its own.
        """
        found: dict[str, Any] = {}
        self.scopes.append((given, *init.scopes))
        try:
            for name, made in cls.settings.items():
                with suppress(ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
                    way = self.way(made)
                    found[name] = self.value(way) if way is not None else Box()
        finally:
            self.scopes.pop()
        return {name: value for name, value in found.items() if isinstance(value, _SETTINGS)}

    def way(self, made: ast.expr) -> ast.expr | None:
        """An expression, or that of its ways which is taken; None where it is not known, or is one
        that makes something.
        """
        if not isinstance(made, ast.IfExp):
            return None if _makes(made) else made
        test = None if _makes(made.test) else self.truth(self.value(made.test))
        return None if test is None else self.way(made.body if test else made.orelse)

    def on_the_side(
        self, method: Function, args: list[Any], named: dict[str, Any], node: ast.AST
    ) -> Observed:
        trace, counters = self.trace, (self.interest, self.order, self.uncertain, self.hooks)
        leaves = {n: dict(vars(leaf)) for n, leaf in self.leaves.items()}
        holding, attrs = dict(self.holding), dict(args[0].attrs)
        disk = (self.disk.seen, self.disk.held)
        self.trace = Trace(steps=trace.steps)
        result: Any = None
        self.looking += 1
        try:
            result = self.call_function(method, args, named, node)
        except (AbortSignal, BreakSignal, ContinueSignal, ReturnSignal):
            result = None
        finally:
            self.looking -= 1
            trace.steps, self.trace = self.trace.steps, trace
            self.interest, self.order, self.uncertain, self.hooks = counters
            for number, leaf in self.leaves.items():
                vars(leaf).update(leaves.get(number, {}))
            self.holding, args[0].attrs = holding, attrs
            self.disk.seen, self.disk.held = disk
        given = depends(merge(b for a in args for b in collect(a)))
        several = result if isinstance(result, (tuple, list)) and len(result) > 1 else ()
        parts = [collect(value) for value in several]
        each = tuple(_told(p, given) if p else Observed(parts=1) for p in parts)
        whole = _told(collect(result), given)
        return whole if whole.parts else replace(whole, each=each)


def _makes(expression: ast.expr) -> bool:
    """Whether a part of an expression is a call, or names a value, and does more than read a
    setting.
    """
    return any(
        isinstance(part, ast.NamedExpr) or (isinstance(part, ast.Call) and not _reads(part))
        for part in ast.walk(expression)
    )


def _reads(call: ast.Call) -> bool:
    """Whether a call reads a setting of the environment, or changes its type."""
    name, holder = name_of(call.func), getattr(call.func, "value", None)
    return name in CASTS | {"getenv"} or (name == "get" and name_of(holder) == "environ")


def _told(boxes: list[Box], given: int) -> Observed:
    """What returned values tell of a loss among them."""
    shapes = {box.shape == () for box in boxes if box.scores and box.shape is not None}
    return Observed(
        why=next((why for box in boxes if (why := _changed(box))), ""),
        lost=next((lost for box in boxes if (lost := _forgotten(box))), ""),
        single=shapes.pop() if len(shapes) == 1 else None,
        parts=_parts(boxes, given),
    )


def _parts(boxes: list[Box], given: int) -> int:
    """How many values a method returns where none is a loss: several without a score, or one that
    does not depend on the newest token that was given, which is a target.
    """
    if any(box.scores for box in boxes):
        return 0
    several = len(boxes) > 1
    blind = several or any(depends(box).bit_length() < given.bit_length() for box in boxes)
    return len(boxes) if blind else 0


def _forgotten(box: Box) -> str:
    """What made the content of a returned loss unknown."""
    if not box.scores or (box.val is not None and "guess" not in box.marks):
        return ""
    lost = sorted(m.removeprefix(LOST) for m in box.marks if m.startswith(LOST))
    return lost[0] if lost else "a weight that is not known" if "guess" in box.marks else ""


def _changed(box: Box) -> str:
    """What was done to a returned loss, as far as its content and marks tell."""
    if not box.nll and not box.scores:
        return ""
    warps = sorted(m.removeprefix(WARP) for m in box.marks if m.startswith(WARP))
    if warps:
        return warps[0]
    if box.val is None or "guess" in box.marks:
        return ""
    content = np.abs(box.val)
    if box.pos is not None and content.shape == box.pos.shape:
        plain = witness(box.pos)
    else:
        count = target_bits(box).bit_count()
        plain = np.asarray(mean_witness(target_bits(box)))
        if np.allclose(content, plain * count, rtol=1e-3):
            return ""
    if plain is None or np.allclose(content, plain, rtol=2e-3):
        return ""
    ratio = float(np.mean(content) / max(float(np.mean(plain)), 1e-9))
    return f"a method of the model returns {ratio:.3g} times the loss"
