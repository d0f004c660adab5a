"""Models in which what comes of all positions of a window takes part in what is made of each (C1).

The engine does not follow what a model does inside itself. This rule follows the names of a
model's own methods: what is computed from their inputs, what of that is reduced over the whole
window, and whether such a number is joined again with values that each position has its own of.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import partial

from niblick.audit.conditions import Guard
from niblick.audit.reads import name_of, names_in
from niblick.audit.rules.case import Case
from niblick.audit.rules.reach import Reach
from niblick.audit.rules.registry import rule
from niblick.audit.rules.window import POSITIONS, Window, arguments, axis_of, given, layers, plain
from niblick.audit.types import Finding, Severity
from niblick.audit.words import words

RULE = "look-ahead"
_REDUCTIONS = words("mean amax amin std var median")
_ALONG = words("max min sum norm vector_norm logsumexp")
"""Reductions that only count where they are told to go along the positions."""
_LOSSES = words(
    "cross_entropy nll_loss log_softmax logsumexp mse_loss smooth_l1_loss cosine_similarity"
)
_PLAIN = words("new_tensor new_zeros new_ones new_full zeros_like ones_like size numel dim len")
_KIND = words("dtype device shape ndim training")
_JOINS = (ast.Mult, ast.Div, ast.Sub, ast.Add)
_WHOLE = (
    "reduces what it computes over all positions of a window and joins the result with each of them"
)
_LATER = "gives positions what it has computed for later ones"
_EVERY = "makes each position of all positions of a window"


@rule("look-ahead")
def check(case: Case) -> list[Finding]:
    """One suspicion for the first model in which a value of the whole window meets others."""
    called = called_on(case)
    classes = [n for n in case.nodes if isinstance(n, ast.ClassDef)]
    own = {c.name for c in classes if any(name_of(b) == "Linear" for b in c.bases)}
    linear = frozenset(own | {"Linear"})
    for model in case.nodes:
        if isinstance(model, ast.ClassDef) and any(name_of(b) == "Module" for b in model.bases):
            reach = Reach(case, model)
            init = next((m for m in model.body if getattr(m, "name", "") == "__init__"), None)
            made = statements(init.body if isinstance(init, ast.FunctionDef) else [], reach)
            kinds = dict(layers(made, linear))
            for method, inputs in inputs_of(model, reach, called).items():
                name = f"{model.name}.{method.name}"
                ways = ((_WHOLE, _joined), (_LATER, _shifted), (_EVERY, partial(_mixed, kinds)))
                for what, places in ways:
                    node = next(places(method, inputs, reach), None)
                    if node is not None:
                        return [suspicion(case, name, what, node)]
    return []


def suspicion(case: Case, where: str, what: str, node: ast.AST) -> Finding:
    """That a method of a model may look ahead."""
    return case.finding(
        RULE,
        Severity.WARNING,
        f"{where} {what}: later tokens may take part in earlier predictions.",
        verdict="hold_unclear",
        pointer="C1",
        line=getattr(node, "lineno", 1),
        cure="Take part in a position's value of earlier positions only.",
    )


def called_on(case: Case) -> frozenset[str]:
    """The names of methods that a program calls on anything but `self` or `super()`."""
    calls = (call.func for _, call in case.program.calls())
    return frozenset(
        func.attr
        for func in calls
        if isinstance(func, ast.Attribute) and name_of(func.value) not in {"self", ""}
    )


def inputs_of(
    model: ast.ClassDef, reach: Reach, called: frozenset[str]
) -> dict[ast.FunctionDef, set[str]]:
    """The methods that `forward` and those `called` come to, with the names of their inputs that
    come of their own.
    """
    methods = {m.name: m for m in model.body if isinstance(m, ast.FunctionDef)}
    found: dict[ast.FunctionDef, set[str]] = {}
    waiting = [
        (method, set(_parameters(method)))
        for name, method in methods.items()
        if name == "forward" or (name in called and _uses_layers(method, methods))
    ]
    while waiting:
        method, names = waiting.pop()
        if names <= found.get(method, set()) and method in found:
            continue
        found[method] = found.get(method, set()) | names
        own = derived(method, found[method])
        calls = (n for s in statements(method.body, reach) for n in ast.walk(s))
        for call in calls:
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute):
                other = methods.get(call.func.attr)
                if other is not None and name_of(call.func.value) == "self":
                    pairs = zip(_parameters(other), call.args, strict=False)
                    given = {name for name, arg in pairs if names_of(arg) & own}
                    waiting.append((other, given))
    return found


def _uses_layers(method: ast.FunctionDef, methods: dict[str, ast.FunctionDef]) -> bool:
    """Whether a method passes values through what its model holds."""
    return any(
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and name_of(node.func.value) == "self"
        and node.func.attr not in methods
        for node in ast.walk(method)
    )


def _parameters(method: ast.FunctionDef) -> list[str]:
    return [a.arg for a in method.args.args if a.arg != "self"]


def names_of(node: ast.AST) -> set[str]:
    """The names that a value is made of; what merely has the kind of another is not made of it."""
    if isinstance(node, ast.Name):
        return {node.id}
    if isinstance(node, ast.Call) and name_of(node.func) in _PLAIN:
        return set()
    if isinstance(node, ast.Attribute) and node.attr in _KIND:
        return set()
    return {name for child in ast.iter_child_nodes(node) for name in names_of(child)}


def derived(method: ast.FunctionDef, names: set[str]) -> set[str]:
    """The names of a method whose values come of these."""
    out = set(names)
    for _ in range(2):
        for node in ast.walk(method):
            if isinstance(node, ast.Assign) and names_of(node.value) & out:
                out |= {n for target in node.targets for n in names_of(target)} - {"self"}
    return out


def _joined(method: ast.FunctionDef, inputs: set[str], reach: Reach) -> Iterator[ast.AST]:
    """Where a reduction over the window, or a name that holds what comes of one, is joined with
    values that are not; statements that losses are made of, or that a switch leaves out, aside.
    """
    window = Window(derived(method, inputs), {})
    if any(isinstance(n, ast.Call) and name_of(n.func) in _LOSSES for n in ast.walk(method)):
        return
    for statement in statements(method.body, reach):
        value = getattr(statement, "value", None)
        if value is None:
            continue
        if any(
            _meet(part.left, part.right, window) or _meet(part.right, part.left, window)
            for part in ast.walk(value)
            if isinstance(part, ast.BinOp) and isinstance(part.op, _JOINS)
        ):
            yield statement
        if isinstance(statement, ast.Assign) and _reduces(value, window):
            window.whole |= {n for target in statement.targets for n in names_of(target)}
        window.assign(statement)


def _mixed(
    kinds: dict[str, str], method: ast.FunctionDef, inputs: set[str], reach: Reach
) -> Iterator[ast.AST]:
    """Where an operation, a layer or weights make each position of all of them, losses aside."""
    own = derived(method, inputs)
    if any(isinstance(n, ast.Call) and name_of(n.func) in _LOSSES for n in ast.walk(method)):
        return
    window = Window(own, kinds)
    for statement in statements(method.body, reach):
        for node in ast.walk(statement):
            if window.mixes(node):
                yield node
        window.assign(statement)


def _shifted(method: ast.FunctionDef, inputs: set[str], reach: Reach) -> Iterator[ast.AST]:
    """Where values are moved to earlier positions, or turned round along them, losses aside."""
    own = derived(method, inputs)
    if any(isinstance(n, ast.Call) and name_of(n.func) in _LOSSES for n in ast.walk(method)):
        return
    for statement in statements(method.body, reach):
        for node in ast.walk(statement):
            if not (isinstance(node, ast.Call) and _moves(node)) and not _cut_off(node):
                continue
            if names_of(node) & own or "tril" in names_in(node):
                yield node


def _moves(call: ast.Call) -> bool:
    """Whether a call moves what it is given to earlier positions."""
    name, named = name_of(call.func), {k.arg: k.value for k in call.keywords}
    args = arguments(call)
    if name == "roll":
        by, along = [*args[1:3], None, None][:2]
        shift, axis = plain(named.get("shifts", by)), plain(named.get("dims", along))
        return isinstance(shift, int) and shift < 0 and axis == POSITIONS
    if name == "flip":
        axes = plain(named.get("dims", args[1] if len(args) > 1 else None))
        return axes == POSITIONS or axes in ((POSITIONS,), [POSITIONS])
    if name in {"cat", "concat"} and args:
        axis = plain(named.get("dim", args[1] if len(args) > 1 else None))
        parts = args[0].elts if isinstance(args[0], (ast.List, ast.Tuple)) else []
        return axis == POSITIONS and any(map(_begins_later, parts[:1]))
    if name == "tril":
        above = plain(named.get("diagonal", args[1] if len(args) > 1 else None))
        return isinstance(above, int) and above > 0
    return False


def _cut_off(node: ast.AST) -> bool:
    """Whether the first positions are cut off what was padded behind the last."""
    padded = node.value if isinstance(node, ast.Subscript) else None
    if not isinstance(padded, ast.Call) or name_of(padded.func) != "pad":
        return False
    sizes = plain(given(padded, words("pad"), 1))
    behind = isinstance(sizes, tuple) and len(sizes) == 4 and sizes[3] > 0
    return behind and _begins_later(node)  # type: ignore[arg-type]


def _begins_later(node: ast.expr) -> bool:
    """Whether a value is all positions of another but the first ones."""
    if not isinstance(node, ast.Subscript) or not isinstance(node.slice, ast.Tuple):
        return False
    along = [*node.slice.elts, None, None][POSITIONS]
    if not isinstance(along, ast.Slice) or along.upper is not None:
        return False
    start = plain(along.lower)
    return isinstance(start, int) and start > 0


def _meet(one: ast.expr, other: ast.expr, window: Window) -> bool:
    return (
        _reduces(one, window)
        and bool(names_of(other) & (window.own - window.whole))
        and not any(
            isinstance(n, ast.Call) and name_of(n.func) in _REDUCTIONS for n in ast.walk(other)
        )
    )


def _reduces(node: ast.AST, window: Window) -> bool:
    return any(
        (isinstance(n, ast.Name) and n.id in window.whole)
        or (
            isinstance(n, ast.Call)
            and isinstance(n.func, ast.Attribute)
            and any(names_of(part) & window.own for part in arguments(n)[:1])
            and _over_window(n, window)
        )
        for n in ast.walk(node)
    )


def _over_window(call: ast.Call, window: Window) -> bool:
    """Whether a call reduces all axes, or some that hold the positions."""
    name = name_of(call.func)
    if name in _ALONG:
        along = plain(axis_of(call, 1 + ("norm" in name))) == POSITIONS
        return along and window.windows(arguments(call)[0])
    axis = axis_of(call)
    which = plain(axis)
    if name not in _REDUCTIONS or (axis is not None and which is None):
        return False
    several = isinstance(which, (tuple, list)) and len(which) > 1 and -1 not in which
    return which is None or which == POSITIONS or several


def statements(body: list[ast.stmt], reach: Reach) -> Iterator[ast.stmt]:
    """The statements of a body in order, without those that run in training or under a switch that
    is off.
    """
    for node in body:
        if isinstance(node, ast.If):
            training = "training" in ast.unparse(node.test)
            for part, wanted in ((node.body, True), (node.orelse, False)):
                if not (training and wanted) and not reach.closed(Guard(node.test, wanted)):
                    yield from statements(part, reach)
        elif not isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            if not hasattr(node, "body"):
                yield node
            for name in ("body", "orelse", "finalbody"):
                yield from statements(getattr(node, name, []), reach)
