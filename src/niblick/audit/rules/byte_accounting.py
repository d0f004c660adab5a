"""Bits per byte with an assumed number of bytes per token in place of the bytes of the scored
text, and bytes that are counted twice.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from niblick.audit.flow.figures import honest
from niblick.audit.flow.objects import FigureEvent, Where
from niblick.audit.rules.case import Case
from niblick.audit.rules.program import Program
from niblick.audit.rules.registry import rule
from niblick.audit.types import Finding, Severity

RULE = "byte-accounting"
_FIGURE = re.compile(r"bpb|bits_per_byte", re.IGNORECASE)
_BYTES = re.compile(r"byte|char", re.IGNORECASE)


@rule("byte-accounting", of_text=True)
def check(case: Case) -> list[Finding]:
    """One breach per figure of bits per byte that is divided by a constant and by no count of
    bytes, where it is the only one; beside a figure that counts its bytes it is a remark.
    """
    if case.tree is None:
        return []
    beside = any(_counts_bytes(figure) for figure in case.trace.figures)
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
                    Severity.NOTE if beside else Severity.BREACH,
                    f"Bits per byte are computed with a fixed {number:g} bytes per token"
                    f"{', beside a figure that counts them' if beside else ''}.",
                    verdict=None if beside else "flag_other",
                    pointer="bytes",
                    line=node.lineno,
                    end=node.end_lineno,
                    cure="Divide by the UTF-8 bytes of the scored tokens, counted token by token.",
                )
            )
    return [*out[:3], *_space_twice(case)]


def _space_twice(case: Case) -> list[Finding]:
    """A breach where a token's table of bytes holds its leading space already and the run adds it
    again: each word then has a byte too many, and the figure comes out too low. The script and the
    modules beside it are one program here.
    """
    nodes = list(_reached(case))
    if not any(_adds_spaces(node) for _, node in nodes):
        return []
    return [
        case.finding(
            RULE,
            Severity.BREACH,
            "The leading space of a token is counted twice: in its table of bytes and again where"
            " the bytes of the scored tokens are added up.",
            verdict="flag_other",
            pointer="bytes",
            where=Where(file=file, line=node.lineno, function=""),
            cure="Leave the space out of the table, or out of the sum.",
        )
        for file, node in nodes
        if isinstance(node, ast.If) and _keeps_space(node)
    ][:1]


def _reached(case: Case) -> Iterator[tuple[str, ast.AST]]:
    """File and node of what the run comes to."""
    own = case.submission.source.path if case.submission.source else ""
    programs = [(own, case.program), *((file, Program(tree)) for file, tree in case.modules)]
    for file, program in programs:
        for node in ast.walk(program.tree):
            weighed = isinstance(node, (ast.If, ast.AugAssign, ast.BinOp))
            if weighed and program.around(node) in case.trace.reached:
                yield file, node


def _keeps_space(node: ast.If) -> bool:
    """Whether, for pieces that begin with a space, one table gets a flag and another one byte more
    than the rest of the piece has.
    """
    if "startswith" not in ast.unparse(node.test) or "\u2581" not in ast.unparse(node.test):
        return False
    stored = [
        n.value
        for n in node.body
        if isinstance(n, ast.Assign) and isinstance(n.targets[0], ast.Subscript)
    ]
    flags = [v for v in stored if isinstance(v, ast.Constant) and v.value is True]
    more = [
        v
        for v in stored
        if isinstance(v, ast.BinOp)
        and isinstance(v.op, ast.Add)
        and any(isinstance(side, ast.Constant) and side.value == 1 for side in (v.left, v.right))
    ]
    return bool(flags and more)


def _adds_spaces(node: ast.AST) -> bool:
    """Whether `flag[token] & ~boundary[previous]` is added to something."""
    if isinstance(node, ast.AugAssign) and isinstance(node.op, ast.Add):
        parts = [node.value]
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        parts = [node.left, node.right]
    else:
        return False
    return any(
        isinstance(n, ast.BinOp)
        and isinstance(n.op, ast.BitAnd)
        and any(
            isinstance(side, ast.UnaryOp)
            and isinstance(side.op, ast.Invert)
            and isinstance(side.operand, ast.Subscript)
            for side in (n.left, n.right)
        )
        for part in parts
        for n in ast.walk(part)
    )


def _counts_bytes(figure: FigureEvent) -> bool:
    """Whether a printed figure was seen to be a plain sum over bytes that were counted."""
    return (
        figure.named
        and figure.content is not None
        and honest(figure.content)
        and not figure.warps
        and not figure.guessed
    )


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
