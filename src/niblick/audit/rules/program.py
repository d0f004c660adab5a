"""What several rules ask of a program's text: calls by dotted name, definitions of names, the
function around a node.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from niblick.audit.reads import name_of
from niblick.audit.words import ordered

Functions = ast.FunctionDef | ast.AsyncFunctionDef
NETWORK = ordered(
    "requests urllib httpx socket http.client aiohttp huggingface_hub boto3 wget gdown ftplib"
)
DOWNLOADS = frozenset({"urlopen", "urlretrieve", "hf_hub_download", "snapshot_download"})


def dotted(node: ast.expr) -> str:
    """`a.b.c` for a chain of names, with `()` for calls inside it; empty where it is neither."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return f"{dotted(node.func)}()" if isinstance(node, ast.Call) else ""


def last(node: ast.expr) -> str:
    """The last name of a chain."""
    return dotted(node).removesuffix("()").rpartition(".")[2]


def constant(node: ast.expr | None, kind: type) -> object:
    """The value of a literal of this kind, else None."""
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, kind) else None


class Program:
    """One syntax tree with the places and definitions rules look up again and again."""

    def __init__(self, tree: ast.Module) -> None:
        self.tree = tree
        self.functions: dict[str, list[Functions]] = {}
        self.defined: dict[str, list[ast.expr]] = {}
        self.imported: dict[str, str] = {}
        self._calls: list[tuple[str, ast.Call]] | None = None
        self._around: dict[int, tuple[str, bool]] = {}
        self._visit(tree, "<module>", False)

    def _visit(self, node: ast.AST, function: str, method: bool) -> None:
        for child in ast.iter_child_nodes(node):
            self._around[id(child)] = (function, method)
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
                self.functions.setdefault(child.name, []).append(child)
                self._visit(child, child.name, isinstance(node, ast.ClassDef))
                continue
            self._define(child)
            self._visit(child, function, method)

    def _define(self, node: ast.AST) -> None:
        pairs: list[tuple[ast.expr, ast.expr | None]] = []
        if isinstance(node, ast.Assign):
            pairs = [(target, node.value) for target in node.targets]
        elif isinstance(node, (ast.AnnAssign, ast.AugAssign, ast.NamedExpr)):
            pairs = [(node.target, node.value)]
        elif isinstance(node, (ast.For, ast.comprehension)):
            pairs = [(node.target, node.iter)]
        elif isinstance(node, ast.withitem) and node.optional_vars is not None:
            pairs = [(node.optional_vars, node.context_expr)]
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            base = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            self.imported.update(
                {alias.asname or alias.name: base + alias.name for alias in node.names}
            )
        for target, value in pairs:
            for part in ast.walk(target):
                name = name_of(part)
                if name and value is not None:
                    self.defined.setdefault(name, []).append(value)

    def around(self, node: ast.AST) -> str:
        """The name of the function a node is in."""
        return self._around.get(id(node), ("<module>", False))[0]

    def in_method(self, node: ast.AST) -> bool:
        """Whether the function a node is in is a method, which others may call unseen."""
        return self._around.get(id(node), ("<module>", False))[1]

    def local(self, node: ast.AST, name: str) -> list[ast.expr]:
        """The values given to a name in the very function a node is in."""
        return [
            value for value in self.defined.get(name, []) if self.around(value) == self.around(node)
        ]

    def calls(self) -> list[tuple[str, ast.Call]]:
        """(dotted name with import aliases resolved, call) of every call."""
        if self._calls is None:
            self._calls = [
                (self.full_name(node.func), node)
                for node in ast.walk(self.tree)
                if isinstance(node, ast.Call)
            ]
        return self._calls

    def full_name(self, node: ast.expr) -> str:
        """`dotted`, its first name replaced by what it was imported as."""
        first, dot, rest = dotted(node).partition(".")
        return self.imported.get(first, first) + dot + rest

    def origins(self, node: ast.expr, depth: int = 6) -> Iterator[ast.expr]:
        """An expression and, through definitions of the names in it, everything it is made from."""
        seen: set[str] = set()
        pending = [(node, depth)]
        while pending:
            current, left = pending.pop()
            for part in ast.walk(current):
                if not isinstance(part, ast.expr):
                    continue
                yield part
                name = part.id if isinstance(part, ast.Name) else ""
                if name and name not in seen and left:
                    seen.add(name)
                    pending.extend((value, left - 1) for value in self.defined.get(name, []))
