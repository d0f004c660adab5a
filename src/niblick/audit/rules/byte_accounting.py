"""Bits per byte with an assumed number of bytes per token in place of the bytes of the scored
text.
"""

from __future__ import annotations

import ast
import re

from niblick.audit.rules.case import Case
from niblick.audit.rules.registry import rule
from niblick.audit.types import Finding, Severity

RULE = "byte-accounting"
_FIGURE = re.compile(r"bpb|bits_per_byte", re.IGNORECASE)
_BYTES = re.compile(r"byte|char", re.IGNORECASE)


@rule("byte-accounting", of_text=True)
def check(case: Case) -> list[Finding]:
    """One breach per figure of bits per byte that is divided by a constant and by no count of
    bytes.
    """
    if case.tree is None:
        return []
    constants = _constants(case.nodes)
    out = []
    for node in case.nodes:
        if not isinstance(node, ast.Assign) or not any(
            _FIGURE.search(ast.unparse(t)) for t in node.targets
        ):
            continue
        number = _assumed(node.value, constants)
        if number is not None:
            out.append(
                case.finding(
                    RULE,
                    Severity.BREACH,
                    f"Bits per byte are computed with a fixed {number:g} bytes per token.",
                    verdict="flag_other",
                    pointer="bytes",
                    line=node.lineno,
                    end=node.end_lineno,
                    cure="Divide by the UTF-8 bytes of the scored tokens, counted token by token.",
                )
            )
    return out[:3]


def _constants(nodes: list[ast.AST]) -> dict[str, float]:
    """Names bound once to a number and called after bytes per token."""
    found: dict[str, float] = {}
    for node in nodes:
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, (int, float))
        ):
            for target in node.targets:
                if (
                    isinstance(target, ast.Name)
                    and re.search(r"byte|char", target.id, re.IGNORECASE)
                    and re.search(r"tok", target.id, re.IGNORECASE)
                ):
                    found[target.id] = float(node.value.value)
    return found


def _assumed(value: ast.expr, constants: dict[str, float]) -> float | None:
    """The constant an expression divides by besides ln 2, where no count of bytes takes part in
    it.
    """
    text = ast.unparse(value)
    if "log" not in text and "0.693" not in text and "1.44" not in text:
        return None
    names = {n.id for n in ast.walk(value) if isinstance(n, ast.Name)}
    for name in names & constants.keys():
        return constants[name]
    if _BYTES.search(text):
        return None
    for node in ast.walk(value):
        if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Mult, ast.Div)):
            for side in (node.left, node.right):
                number = (
                    side.value
                    if isinstance(side, ast.Constant) and isinstance(side.value, float)
                    else 2.0
                )
                if 1.5 < number < 9.0 and abs(number - 2.0) > 1e-9:
                    return number
    return None
