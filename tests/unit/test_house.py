"""The house style's limits, checked over the whole source tree."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import niblick

SOURCE = Path(niblick.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60


def _functions(tree: ast.Module) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [
        node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_a_file_has_a_docstring_and_stays_within_the_size_limits(path: Path) -> None:
    text = path.read_text("utf-8")
    tree = ast.parse(text)
    assert ast.get_docstring(tree), "a module opens with what it is and what it guarantees"
    assert len(text.splitlines()) <= MAX_FILE_LINES
    for function in _functions(tree):
        length = (function.end_lineno or function.lineno) - function.lineno + 1
        assert length <= MAX_FUNCTION_LINES, f"{function.name} has {length} lines"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_only_the_edges_print_or_read_the_environment(path: Path) -> None:
    relative = path.relative_to(SOURCE).as_posix()
    if relative == "runtime.py" or relative.startswith(("cli/", "audit/")):
        return
    tree = ast.parse(path.read_text("utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "print", f"{relative}:{node.lineno} prints"
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "os"
        ):
            assert node.attr not in ("environ", "getenv", "putenv"), (
                f"{relative}:{node.lineno} reads the environment"
            )


def test_public_functions_and_classes_are_documented() -> None:
    missing = [
        f"{path.relative_to(SOURCE)}:{node.name}"
        for path in FILES
        for node in ast.parse(path.read_text("utf-8")).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and ast.get_docstring(node) is None
    ]
    assert missing == []
