"""Token probabilities spread over bytes and mixed with byte counts: the mixture is no distribution
(C2).
"""

from __future__ import annotations

import ast

from niblick.audit.flow.native import spread
from niblick.audit.reads import name_of
from niblick.audit.rules.case import Case
from niblick.audit.rules.figure import logged_only
from niblick.audit.rules.logged import mixed
from niblick.audit.rules.reach import Reach
from niblick.audit.rules.registry import rule
from niblick.audit.submission import c_sources
from niblick.audit.types import Finding, Severity

RULE = "byte-mixture"


@rule("byte-mixture", of_text=True)
def check(case: Case) -> list[Finding]:
    """One breach per function, in Python or C, that mixes a byte count model into already computed
    token log-probabilities, and is reached, or has left its mark in the logs; none where it only
    logs a figure beside the claimed one.
    """
    if case.tree is None:
        return []
    reach, native = Reach(case), set[str]()
    for text in c_sources(case.submission, case.carried):
        native |= spread(text)
    own: dict[str, tuple[ast.FunctionDef | ast.Call, str]] = {
        node.name: (node, node.name) for node in case.functions if _mixes_bytes(node)
    }
    for name, call in case.program.calls() if native else ():
        if "." in name and (last := name.rpartition(".")[2]) in native:
            own.setdefault(last, (call, case.program.around(call)))
    out = []
    for name, (place, around) in own.items():
        used = reach.possible(around) and not logged_only(case, around)
        if used or mixed(case):
            out.append(_finding(case, name, place))
    return out


def _finding(case: Case, name: str, place: ast.FunctionDef | ast.Call) -> Finding:
    return case.finding(
        RULE,
        Severity.BREACH,
        f"{name} mixes an adaptive model of bytes into log-probabilities of whole tokens, computed"
        " for the token that occurred only; no distribution over the alphabet is formed.",
        verdict="flag_other",
        pointer="C2",
        line=place.lineno,
        end=place.end_lineno,
        cure="Mix two full distributions over one alphabet before looking at the token.",
    )


def _mixes_bytes(function: ast.FunctionDef) -> bool:
    """Counts learnt in a loop, the byte alphabet's size, a logarithm, and a weighted sum with
    complementary weights.
    """
    nodes = list(ast.walk(function))
    alphabet = any(isinstance(n, ast.Constant) and n.value in (256, 256.0) for n in nodes)
    return (
        alphabet
        and _counts(nodes)
        and _complementary(nodes)
        and any(
            isinstance(n, (ast.Attribute, ast.Name))
            and name_of(n).lstrip("_") in {"log", "logaddexp", "log2", "ln"}
            for n in nodes
        )
    )


def _counts(nodes: list[ast.AST]) -> bool:
    """Whether some entry of a container is increased by one."""
    for node in nodes:
        if (
            isinstance(node, ast.AugAssign)
            and isinstance(node.op, ast.Add)
            and isinstance(node.target, ast.Subscript)
            and isinstance(node.value, ast.Constant)
        ):
            return True
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.value, ast.BinOp)
            and isinstance(node.targets[0], ast.Subscript)
        ):
            sides = (node.value.left, node.value.right)
            if any(isinstance(s, ast.Constant) and s.value == 1 for s in sides):
                return True
    return False


def _complementary(nodes: list[ast.AST]) -> bool:
    """Whether weights w and 1 - w both appear."""
    weights = {ast.dump(n) for n in nodes if isinstance(n, (ast.Name, ast.Attribute))}
    return any(
        isinstance(n, ast.BinOp)
        and isinstance(n.op, ast.Sub)
        and isinstance(n.left, ast.Constant)
        and n.left.value in (1, 1.0)
        and ast.dump(n.right) in weights
        for n in nodes
    )
