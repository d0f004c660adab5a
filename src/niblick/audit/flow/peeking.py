"""Loops over tokens that write, for each token, something they would not write were it another
token.

The Python side of `native`, which follows their statements: in `for i, t in enumerate(tokens)` (or
over a range, with `t = tokens[i]`), an entry `out[i] = ...` that does not hold `t` but stands under
a condition looked up from `t` tells something about it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from niblick.audit.flow.native import Facts, Statement, follow, words_of
from niblick.audit.reads import name_of, names_in

_RANGES = frozenset({"range", "prange", "trange"})


def peeks(function: ast.AST) -> bool:
    """Whether some loop of a function writes entries that are gated by the very token they are
    for.
    """
    if not isinstance(function, ast.FunctionDef):
        return False
    return any(isinstance(node, ast.For) and _gated(node) for node in ast.walk(function))


def _gated(loop: ast.For) -> bool:
    """Whether one turn of a loop over tokens writes an entry that its token gates."""
    name = name_of(loop.iter.func) if isinstance(loop.iter, ast.Call) else ""
    pair = loop.target.elts if isinstance(loop.target, ast.Tuple) else []
    if name == "enumerate" and len(pair) == 2:
        index, token = (name_of(part) for part in pair)
    else:
        index, token = name_of(loop.target) if name in _RANGES else "", ""
    if not index:
        return False
    facts = Facts(index, dict.fromkeys(names_in(loop), 0), {token} - {""})
    follow(list(_statements(loop.body, index)), facts, False)
    return bool(facts.gated)


def _statements(body: list[ast.stmt], index: str) -> Iterator[Statement]:
    """Statements as `native` follows them; of entries, those that are computed for the index."""
    for node in body:
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None:
            computed = any(isinstance(n, (ast.Subscript, ast.Call)) for n in ast.walk(node.value))
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                entry = isinstance(target, ast.Subscript)
                own = entry and name_of(target.slice) == index  # type: ignore[attr-defined]
                if (own and computed) or not entry:
                    yield Statement("plain", [*_words(target), "=", *_words(node.value)])
        elif isinstance(node, ast.If):
            ways = (list(_statements(part, index)) for part in (node.body, node.orelse))
            yield Statement("if", _words(node.test), *ways)
        elif isinstance(node, (ast.For, ast.While, ast.With, ast.Try)):
            yield Statement("block", [], list(_statements(node.body, index)))
        elif isinstance(node, (ast.Continue, ast.Break, ast.Return)):
            yield Statement("plain", ["continue"])


def _words(node: ast.expr) -> list[str]:
    """The words of an expression, of whose brackets only those of subscripts look something up."""
    words = words_of(ast.unparse(node))
    return [part for word in words for part in ((",", word) if word == "(" else (word,))]
