"""Two count reads in one reached function, by hashed context and by that hash with the target mixed
in (C2).

The data-flow engine reports such a read where it can align keys with scored positions; this rule
follows the definitions of the two keys inside the function instead, so it holds where a table is
too dynamic to follow.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from niblick.audit.rules.case import Case
from niblick.audit.rules.reach import Reach
from niblick.audit.rules.registry import rule
from niblick.audit.types import Finding, Severity

RULE = "ngram-key"
_READS = frozenset({"get", "take", "gather", "index_select"})


@rule("hashed-pair", of_text=True)
def check(case: Case) -> list[Finding]:
    """One breach per reached function that divides a count keyed by context and target by a count
    keyed by context.
    """
    if case.tree is None or case.trace.keys:
        return []
    reach = Reach(case)
    out = []
    functions = {n.name: n for n in case.functions}
    for node in case.functions:
        if reach.possible(node.name):
            pair = _pair(node) or ratio(node, functions)
            if pair is not None:
                out.append(
                    case.finding(
                        RULE,
                        Severity.BREACH,
                        f"{node.name} reads a table of counts with a key that mixes the token being"
                        " scored into the hash of its context, and forms a probability for that"
                        " token only.",
                        verdict="flag_ngram",
                        pointer="C2",
                        line=pair.lineno,
                        end=node.end_lineno,
                        cure=(
                            "Read the table by context alone, form a distribution over the whole"
                            " vocabulary, then look up the token."
                        ),
                    )
                )
    return out[:5]


def _pair(function: ast.FunctionDef) -> ast.expr | None:
    """The key with the target in it, if the function reads tables by such a key and by the context
    alone.
    """
    defined: dict[str, list[ast.expr]] = {}
    for node in ast.walk(function):
        for name, value in _bindings(node):
            defined.setdefault(name, []).append(value)
    keys = [k for k in _keys(function) if isinstance(k, ast.Name) or _hashes(k)]
    if not any(isinstance(n, ast.BinOp) and isinstance(n.op, ast.Div) for n in ast.walk(function)):
        return None
    names = [_core(k, defined) for k in keys]
    for full, (hashes, others) in zip(keys, names, strict=True):
        for context, _ in names:
            if (
                hashes
                and context
                and others
                and context < hashes | others
                and context & hashes
                and not others <= context
            ):
                return full
    return None


def _bindings(node: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    """(name, value) of each binding a statement makes, pairs of tuples included."""
    if isinstance(node, ast.Assign):
        for target in node.targets:
            if isinstance(target, ast.Name):
                yield target.id, node.value
            elif isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                for part, value in zip(target.elts, node.value.elts, strict=False):
                    if isinstance(part, ast.Name):
                        yield part.id, value
    elif isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name):
        yield node.target.id, ast.BinOp(left=node.target, op=node.op, right=node.value)


def _keys(function: ast.FunctionDef) -> Iterator[ast.expr]:
    for node in ast.walk(function):
        if (
            isinstance(node, ast.Subscript)
            and isinstance(node.ctx, ast.Load)
            and not isinstance(node.slice, (ast.Slice, ast.Constant))
        ):
            yield node.slice
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in _READS
            and node.args
        ):
            yield node.args[-1] if node.func.attr != "get" else node.args[0]


def _hashes(node: ast.expr) -> bool:
    return any(isinstance(n, ast.BinOp) and isinstance(n.op, ast.BitXor) for n in ast.walk(node))


def _core(
    key: ast.expr, defined: dict[str, list[ast.expr]]
) -> tuple[frozenset[str], frozenset[str]]:
    """(hash variables a key is made from, further variables multiplied into it by an exclusive
    or).
    """
    hashes: set[str] = set()
    others: set[str] = set()
    pending: list[ast.expr] = [key]
    seen: set[str] = set()
    while pending and len(seen) < 40:
        node = pending.pop()
        for part in ast.walk(node):
            if isinstance(part, ast.BinOp) and isinstance(part.op, ast.BitXor):
                for side, far in ((part.left, part.right), (part.right, part.left)):
                    if isinstance(side, ast.Name) and any(
                        isinstance(n, ast.BinOp) and isinstance(n.op, ast.Mult)
                        for n in ast.walk(far)
                    ):
                        hashes.add(side.id)
                        others |= {n.id for n in ast.walk(far) if isinstance(n, ast.Name)} - {
                            side.id
                        }
            if isinstance(part, ast.Name) and part.id not in seen:
                seen.add(part.id)
                values = defined.get(part.id, [])
                if any(
                    _hashes(v) and part.id in {n.id for n in ast.walk(v) if isinstance(n, ast.Name)}
                    for v in values
                ):
                    hashes.add(part.id)
                else:
                    pending.extend(values)
    return frozenset(hashes), frozenset(others)


def ratio(function: ast.FunctionDef, functions: dict[str, ast.FunctionDef]) -> ast.expr | None:
    """The key of a count that is divided by another count, when it is hashed from all that the
    other's key is and more.
    """
    defined = _definitions(function)
    reads = {
        name: key
        for name, values in defined.items()
        for v in values
        if (key := _read_key(v)) is not None
    }
    for node in ast.walk(function):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
            above = _names(node.left, defined, 4) & reads.keys()
            below = _names(node.right, defined, 1) & reads.keys()
            for full in sorted(above):
                for context in sorted(below - {full}):
                    wide, hashed = _inputs(reads[full], defined, functions, 0)
                    narrow, _ = _inputs(reads[context], defined, functions, 0)
                    if hashed and narrow and narrow < wide:
                        return reads[full]
    return None


def _definitions(function: ast.FunctionDef) -> dict[str, list[ast.expr]]:
    """Every expression a name is bound to; an element of an unpacked call becomes a subscript of
    that call.
    """
    defined: dict[str, list[ast.expr]] = {}
    for node in ast.walk(function):
        for name, value in _bindings(node):
            defined.setdefault(name, []).append(value)
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Tuple)
            and isinstance(node.value, ast.Call)
        ):
            for i, part in enumerate(node.targets[0].elts):
                if isinstance(part, ast.Name):
                    element = ast.Subscript(
                        value=node.value, slice=ast.Constant(value=i), ctx=ast.Store()
                    )
                    defined.setdefault(part.id, []).append(ast.copy_location(element, node))
    return defined


def _read_key(value: ast.expr) -> ast.expr | None:
    """The index of the outermost table read in an expression, unless it has several axes."""
    for node in ast.walk(value):
        if (
            isinstance(node, ast.Subscript)
            and isinstance(node.ctx, ast.Load)
            and not isinstance(node.slice, (ast.Constant, ast.Slice, ast.Tuple))
        ):
            inner = node.value
            if isinstance(inner, (ast.Attribute, ast.Subscript, ast.Name)):
                return node.slice
    return None


def _names(node: ast.expr, defined: dict[str, list[ast.expr]], depth: int) -> set[str]:
    found = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
    if depth:
        for name in list(found):
            for value in defined.get(name, []):
                found |= {n.id for n in ast.walk(value) if isinstance(n, ast.Name)}
    return found


def _inputs(
    key: ast.expr,
    defined: dict[str, list[ast.expr]],
    functions: dict[str, ast.FunctionDef],
    depth: int,
) -> tuple[set[str], bool]:
    """(leaf names a key is computed from, whether it is hashed), through local definitions and
    called functions.
    """
    leaves: set[str] = set()
    hashed = False
    pending: list[ast.expr] = [key]
    seen: set[str] = set()
    while pending and len(seen) < 60:
        node = pending.pop()
        element = (
            node.slice.value
            if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant)
            else None
        )
        for part in ast.walk(node):
            hashed = hashed or (isinstance(part, ast.BinOp) and isinstance(part.op, ast.BitXor))
            if isinstance(part, ast.Call) and depth < 2:
                name = (
                    part.func.id
                    if isinstance(part.func, ast.Name)
                    else getattr(part.func, "attr", "")
                )
                if name in functions:
                    inner, mixed = _returned(functions[name], element, functions, depth)
                    leaves |= inner if isinstance(element, int) else set()
                    hashed = hashed or mixed
            if isinstance(part, ast.Name) and part.id not in seen:
                seen.add(part.id)
                if part.id in defined:
                    pending.extend(defined[part.id])
                else:
                    leaves.add(part.id)
    return leaves, hashed


def _returned(
    function: ast.FunctionDef, element: object, functions: dict[str, ast.FunctionDef], depth: int
) -> tuple[set[str], bool]:
    """`_inputs` of what a function returns (of one element of it), its own names kept apart."""
    defined = _definitions(function)
    leaves: set[str] = set()
    hashed = False
    for node in ast.walk(function):
        value = node.value if isinstance(node, ast.Return) else None
        if isinstance(value, ast.Tuple) and isinstance(element, int) and element < len(value.elts):
            value = value.elts[element]
        if value is None or isinstance(value, ast.Constant):
            continue
        for name in _names(value, {}, 0) & defined.keys():
            leaves.add(f"{function.name}.{name}")
        inner, mixed = _inputs(value, defined, functions, depth + 1)
        leaves |= {f"{function.name}.{name}" for name in inner}
        hashed = hashed or mixed
        expanded = {name for name in _closure(value, defined) if name in defined}
        leaves |= {f"{function.name}.{name}" for name in expanded}
    return leaves, hashed


def _closure(node: ast.expr, defined: dict[str, list[ast.expr]]) -> set[str]:
    names: set[str] = set()
    pending = [node]
    while pending and len(names) < 60:
        for part in ast.walk(pending.pop()):
            if isinstance(part, ast.Name) and part.id not in names:
                names.add(part.id)
                pending.extend(defined.get(part.id, []))
    return names
