"""Bits per byte with an assumed number of bytes per token in place of the bytes of the scored
text, and bytes that are counted twice.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Container, Iterator
from typing import Any

from niblick.audit.flow.figures import honest
from niblick.audit.flow.objects import FigureEvent, Where
from niblick.audit.rules.case import Case
from niblick.audit.rules.program import Program, last
from niblick.audit.rules.registry import rule
from niblick.audit.types import Finding, Severity

RULE = "byte-accounting"
_FIGURE = re.compile(r"bpb|bits_per_byte", re.IGNORECASE)
Programs = list[tuple[str, Program]]
_PIECES = frozenset({"id_to_piece", "IdToPiece", "id_to_token", "piece"})
_MARKER = "\u2581".encode()
_MISTAKES = (
    (
        "with the marker of its leading space in it: three bytes for every space",
        "Take the marker (U+2581) off, and count one byte for the space.",
    ),
    (
        "of a single byte by how it is spelt (<0x0A>): six bytes for one",
        "Count one byte for each piece that stands for a byte.",
    ),
)
_DEPTH = 2
_BYTES = re.compile(r"byte|char", re.IGNORECASE)


@rule("byte-accounting", of_text=True)
def check(case: Case) -> list[Finding]:
    """One breach per figure of bits per byte that is divided by a constant and by no count of
    bytes, where it is the only one; beside a figure that counts its bytes it is a remark, beside
    one whose content is not known a warning.
    """
    if case.tree is None:
        return []
    beside = any(_counts_bytes(figure) for figure in case.trace.figures)
    unsure = any(figure.named and figure.content is None for figure in case.trace.figures)
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
                    Severity.NOTE if beside else (Severity.WARNING if unsure else Severity.BREACH),
                    f"Bits per byte are computed with a fixed {number:g} bytes per token"
                    f"{', beside a figure that counts them' if beside else ''}.",
                    verdict=None if beside else "flag_other",
                    pointer="bytes",
                    line=node.lineno,
                    end=node.end_lineno,
                    cure="Divide by the UTF-8 bytes of the scored tokens, counted token by token.",
                )
            )
    programs = _programs(case)
    return [*out[:3], *_space_twice(case, programs), *_spelling_counted(case, programs)]


def _spelling_counted(case: Case, programs: Programs) -> list[Finding]:
    """A breach where the bytes of a token are those of its piece as SentencePiece spells it, with
    the marker of a leading space (three bytes for one) or the number of a lone byte (six for one)
    in it: nothing in the function, in what it calls or in the names that it reads knows of these.
    """
    for file, program in programs:
        others = program is not case.program
        for name in case.trace.reached - (set(case.program.functions) if others else set()):
            for function in program.functions.get(name, []):
                mistake = _spelling(program, function)
                if mistake is not None:
                    size, wrong, cure = mistake
                    return [
                        case.finding(
                            RULE,
                            Severity.BREACH if case.trace.reported else Severity.WARNING,
                            f"{name} counts the bytes of a piece {wrong}, so that the figure"
                            " comes out too small.",
                            verdict="flag_other",
                            pointer="bytes",
                            where=Where(file=file, line=size.lineno, function=name),
                            cure=cure,
                        )
                    ]
    return []


def _spelling(program: Program, function: ast.AST) -> tuple[ast.expr, str, str] | None:
    """Where a function counts bytes of pieces as they are spelled, what is wrong there, and its
    cure.
    """
    size, (wrong, cure) = _piece_size(function), _MISTAKES[0]
    if size is not None and _knows(program, function, _DEPTH, _is_marker):
        size, (wrong, cure) = _piece_size(function, _with_marker(function)), _MISTAKES[1]
        if _knows(program, function, _DEPTH, _is_lone_byte):
            return None
    return (size, wrong, cure) if size is not None else None


def _with_marker(function: ast.AST) -> set[ast.AST]:
    """What a function does only with pieces that begin with the marker, which no lone byte does."""
    return {
        part
        for node in ast.walk(function)
        if isinstance(node, ast.If) and any(_is_marker(p) for p in ast.walk(node.test))
        for statement in node.body
        for part in ast.walk(statement)
    }


def _piece_size(function: ast.AST, but: Container[ast.AST] = frozenset()) -> ast.expr | None:
    """Where a function stores the bytes of pieces that it asks a vocabulary for, `but` for some."""
    calls = [n for n in ast.walk(function) if isinstance(n, ast.Call)]
    if not any(last(call.func) in _PIECES for call in calls):
        return None
    named = _made_of(function, lambda n: isinstance(n, ast.Call) and last(n.func) in _PIECES)
    for call in calls:
        counts = last(call.func) == "len" and call.args and call not in but
        inner = call.args[0] if counts else None
        if isinstance(inner, ast.Call) and last(inner.func) == "encode":
            names = {n.id for n in ast.walk(inner) if isinstance(n, ast.Name)}
            asked = any(
                isinstance(n, ast.Call) and last(n.func) in _PIECES for n in ast.walk(inner)
            )
            if asked or names & named:
                return call
    return None


def _made_of(function: ast.AST, start: Callable[[ast.AST], bool]) -> set[str]:
    """Names that are bound to something made of what `start` accepts, by way of others."""
    made: set[str] = set()
    bound: list[tuple[ast.expr, ast.expr]] = []
    for node in ast.walk(function):
        if isinstance(node, ast.Assign):
            bound += [(target, node.value) for target in node.targets]
        elif isinstance(node, (ast.For, ast.comprehension)):
            bound.append((node.target, node.iter))
        elif isinstance(node, ast.NamedExpr):
            bound.append((node.target, node.value))
    for _ in range(len(bound)):
        before = len(made)
        for target, value in bound:
            parts = list(ast.walk(value))
            if any(start(n) or (isinstance(n, ast.Name) and n.id in made) for n in parts):
                made |= {n.id for n in ast.walk(target) if isinstance(n, ast.Name)}
        if len(made) == before:
            break
    return made


def _knows(program: Program, node: ast.AST, depth: int, told: Callable[[ast.AST], bool]) -> bool:
    """Whether code holds what is `told`, itself, in names that it reads or in what it calls."""
    for part in ast.walk(node):
        if told(part):
            return True
        others: list[Any] = []
        if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Load):
            others = [*program.defined.get(part.id, []), *program.functions.get(part.id, [])]
        if isinstance(part, ast.Attribute):
            others = program.functions.get(part.attr, [])
        if depth and any(_knows(program, other, depth - 1, told) for other in others):
            return True
    return False


def _is_marker(part: ast.AST) -> bool:
    """Whether a part of a program is the marker of a leading space."""
    value = part.value if isinstance(part, ast.Constant) else None
    if isinstance(value, str):
        return "\u2581" in value
    return value == 0x2581 or (isinstance(value, bytes) and _MARKER in value)


def _is_lone_byte(part: ast.AST) -> bool:
    """Whether a part of a program asks for pieces of one byte, or spells how they begin."""
    if isinstance(part, (ast.Attribute, ast.Name)):
        return last(part).lower().replace("_", "") == "isbyte"
    return isinstance(part, ast.Constant) and "0x" in str(part.value).lower()


def _space_twice(case: Case, programs: Programs) -> list[Finding]:
    """A breach where a token's table of bytes holds its leading space already and the run adds it
    again: each word then has a byte too many, and the figure comes out too low. The script and the
    modules beside it are one program here.
    """
    nodes = list(_reached(case, programs))
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


def _programs(case: Case) -> Programs:
    """File and program of the script and of the modules beside it."""
    own = case.submission.source.path if case.submission.source else ""
    return [(own, case.program), *((file, Program(tree)) for file, tree in case.modules)]


def _reached(case: Case, programs: Programs) -> Iterator[tuple[str, ast.AST]]:
    """File and node of what the run comes to."""
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
    spelt = [n.value for n in node.body if isinstance(n, ast.Assign) and _with_space(n.value)]
    return bool(flags and (more or spelt))


def _with_space(value: ast.expr) -> bool:
    """Whether a piece gets a plain space where its marker was."""
    if isinstance(value, ast.BinOp) and isinstance(value.op, ast.Add):
        return isinstance(value.left, ast.Constant) and value.left.value == " "
    if not isinstance(value, ast.Call) or last(value.func) != "replace":
        return False
    return [getattr(a, "value", None) for a in value.args] == ["\u2581", " "]


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
