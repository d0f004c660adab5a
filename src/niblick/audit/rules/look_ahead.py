"""Models in which what comes of all positions of a window takes part in what is made of each (C1).

The engine does not follow what a model does inside itself. This rule follows the names of a
model's own methods: what is computed from their inputs, what of that is reduced over the whole
window, and whether such a number is joined again with values that each position has its own of.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from niblick.audit.conditions import Guard
from niblick.audit.reads import name_of
from niblick.audit.rules.case import Case
from niblick.audit.rules.reach import Reach
from niblick.audit.rules.registry import rule
from niblick.audit.types import Finding, Severity
from niblick.audit.words import words

RULE = "look-ahead"
_REDUCTIONS = words("mean amax amin std var median")
_LOSSES = words(
    "cross_entropy nll_loss log_softmax logsumexp mse_loss smooth_l1_loss cosine_similarity"
)
_PLAIN = words("new_tensor new_zeros new_ones new_full zeros_like ones_like size numel dim len")
_MODULES = words("torch F functional nn mx jnp np")
_KIND = words("dtype device shape ndim training")
_JOINS = (ast.Mult, ast.Div, ast.Sub, ast.Add)
_POSITIONS = 1  # the axis of a batch of windows that runs along them
_WHOLE = (
    "reduces what it computes over all positions of a window and joins the result with each of them"
)
_LATER = "gives positions what it has computed for later ones"


@rule("look-ahead")
def check(case: Case) -> list[Finding]:
    """One suspicion for the first model in which a value of the whole window meets others."""
    reach = Reach(case)
    for model in case.nodes:
        if isinstance(model, ast.ClassDef) and any(name_of(b) == "Module" for b in model.bases):
            for method, inputs in _inputs(model, reach).items():
                name = f"{model.name}.{method.name}"
                for what, places in ((_WHOLE, _joined), (_LATER, _shifted)):
                    node = next(places(method, inputs, reach), None)
                    if node is not None:
                        return [_finding(case, name, what, node)]
    return []


def _finding(case: Case, where: str, what: str, node: ast.AST) -> Finding:
    return case.finding(
        RULE,
        Severity.WARNING,
        f"{where} {what}: later tokens may take part in earlier predictions.",
        verdict="hold_unclear",
        pointer="C1",
        line=getattr(node, "lineno", 1),
        cure="Take part in a position's value of earlier positions only.",
    )


def _inputs(model: ast.ClassDef, reach: Reach) -> dict[ast.FunctionDef, set[str]]:
    """The methods that `forward` comes to, with the names of their inputs that come of its own."""
    methods = {m.name: m for m in model.body if isinstance(m, ast.FunctionDef)}
    found: dict[ast.FunctionDef, set[str]] = {}
    waiting = [(m, set(_parameters(m))) for n, m in methods.items() if n == "forward"]
    while waiting:
        method, names = waiting.pop()
        if names <= found.get(method, set()) and method in found:
            continue
        found[method] = found.get(method, set()) | names
        own = _derived(method, found[method])
        calls = (n for s in statements(method.body, reach) for n in ast.walk(s))
        for call in calls:
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute):
                other = methods.get(call.func.attr)
                if other is not None and name_of(call.func.value) == "self":
                    pairs = zip(_parameters(other), call.args, strict=False)
                    given = {name for name, arg in pairs if _names(arg) & own}
                    waiting.append((other, given))
    return found


def _parameters(method: ast.FunctionDef) -> list[str]:
    return [a.arg for a in method.args.args if a.arg != "self"]


def _names(node: ast.AST) -> set[str]:
    """The names that a value is made of; what merely has the kind of another is not made of it."""
    if isinstance(node, ast.Name):
        return {node.id}
    if isinstance(node, ast.Call) and name_of(node.func) in _PLAIN:
        return set()
    if isinstance(node, ast.Attribute) and node.attr in _KIND:
        return set()
    return {name for child in ast.iter_child_nodes(node) for name in _names(child)}


def _derived(method: ast.FunctionDef, names: set[str]) -> set[str]:
    """The names of a method whose values come of these."""
    out = set(names)
    for _ in range(2):
        for node in ast.walk(method):
            if isinstance(node, ast.Assign) and _names(node.value) & out:
                out |= {n for target in node.targets for n in _names(target)} - {"self"}
    return out


def _joined(method: ast.FunctionDef, inputs: set[str], reach: Reach) -> Iterator[ast.AST]:
    """Where a reduction over the window, or a name that holds what comes of one, is joined with
    values that are not; statements that losses are made of, or that a switch leaves out, aside.
    """
    own = _derived(method, inputs)
    whole: set[str] = set()
    if any(isinstance(n, ast.Call) and name_of(n.func) in _LOSSES for n in ast.walk(method)):
        return
    for statement in statements(method.body, reach):
        value = getattr(statement, "value", None)
        if value is None:
            continue
        if any(
            _meet(part.left, part.right, own, whole) or _meet(part.right, part.left, own, whole)
            for part in ast.walk(value)
            if isinstance(part, ast.BinOp) and isinstance(part.op, _JOINS)
        ):
            yield statement
        if isinstance(statement, ast.Assign) and _reduces(value, own, whole):
            whole |= {n for target in statement.targets for n in _names(target)}


def _shifted(method: ast.FunctionDef, inputs: set[str], reach: Reach) -> Iterator[ast.AST]:
    """Where values are moved to earlier positions, or turned round along them, losses aside."""
    own = _derived(method, inputs)
    if any(isinstance(n, ast.Call) and name_of(n.func) in _LOSSES for n in ast.walk(method)):
        return
    for statement in statements(method.body, reach):
        for node in ast.walk(statement):
            if not isinstance(node, ast.Call) or not _moves(node):
                continue
            if _names(node) & own or name_of(node.func) == "tril":
                yield node


def _moves(call: ast.Call) -> bool:
    """Whether a call moves what it is given to earlier positions."""
    name, named = name_of(call.func), {k.arg: k.value for k in call.keywords}
    args = list(call.args)
    if isinstance(call.func, ast.Attribute) and name_of(call.func.value) not in _MODULES:
        args.insert(0, call.func.value)
    if name == "roll":
        by, along = [*args[1:3], None, None][:2]
        shift, axis = _plain(named.get("shifts", by)), _plain(named.get("dims", along))
        return isinstance(shift, int) and shift < 0 and axis == _POSITIONS
    if name == "flip":
        axes = _plain(named.get("dims", args[1] if len(args) > 1 else None))
        return axes == _POSITIONS or axes in ((_POSITIONS,), [_POSITIONS])
    if name in {"cat", "concat"} and args:
        axis = _plain(named.get("dim", args[1] if len(args) > 1 else None))
        parts = args[0].elts if isinstance(args[0], (ast.List, ast.Tuple)) else []
        return axis == _POSITIONS and any(map(_begins_later, parts[:1]))
    if name == "tril":
        above = _plain(named.get("diagonal", args[1] if len(args) > 1 else None))
        return isinstance(above, int) and above > 0
    return False


def _begins_later(node: ast.expr) -> bool:
    """Whether a value is all positions of another but the first ones."""
    if not isinstance(node, ast.Subscript) or not isinstance(node.slice, ast.Tuple):
        return False
    along = [*node.slice.elts, None, None][_POSITIONS]
    if not isinstance(along, ast.Slice) or along.upper is not None:
        return False
    start = _plain(along.lower)
    return isinstance(start, int) and start > 0


def _plain(node: ast.expr | None) -> object:
    try:
        return ast.literal_eval(node) if node is not None else None
    except ValueError:
        return None


def _meet(one: ast.expr, other: ast.expr, own: set[str], whole: set[str]) -> bool:
    return (
        _reduces(one, own, whole)
        and bool(_names(other) & (own - whole))
        and not any(
            isinstance(n, ast.Call) and name_of(n.func) in _REDUCTIONS for n in ast.walk(other)
        )
    )


def _reduces(node: ast.AST, own: set[str], whole: set[str]) -> bool:
    return any(
        (isinstance(n, ast.Name) and n.id in whole)
        or (
            isinstance(n, ast.Call)
            and isinstance(n.func, ast.Attribute)
            and n.func.attr in _REDUCTIONS
            and bool(_names(n.func.value) & own)
            and _over_window(n)
        )
        for n in ast.walk(node)
    )


def _over_window(call: ast.Call) -> bool:
    """Whether a reduction takes all axes, or some that hold the positions."""
    axis = next((k.value for k in call.keywords if k.arg in {"dim", "axis"}), None)
    axis = axis or (call.args[0] if call.args else None)
    which = _plain(axis)
    if axis is not None and which is None:
        return False
    several = isinstance(which, (tuple, list)) and len(which) > 1 and -1 not in which
    return which is None or which == _POSITIONS or several


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
