"""Seeds: none set, fixed in code where several are claimed, or the best of many chosen by the
validation score.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from niblick.audit.reads import name_of, names_in
from niblick.audit.rules.case import Case
from niblick.audit.rules.program import Program
from niblick.audit.rules.reach import Reach
from niblick.audit.rules.registry import rule
from niblick.audit.types import Finding, Severity
from niblick.audit.words import words

RULE = "seeds"
_SETS = words(
    "manual_seed manual_seed_all default_rng RandomState seed_everything set_seed Generator"
)
_SEED = re.compile(r"(?:^|_)seeds?(?:$|_)", re.IGNORECASE)
_FIGURE = re.compile(r"bpb|val_?loss|val_?score|bits_per", re.IGNORECASE)


@rule("seeds")
def check(case: Case) -> list[Finding]:
    """Findings on how seeds are set, and a breach where the validation score chooses among them."""
    if case.tree is None:
        return []
    program = case.program
    return [*_chosen(case, program), *_unset(case, program), *_fixed(case, program)]


def _chosen(case: Case, program: Program) -> Iterator[Finding]:
    """A loop over seeds that trains, scores validation and keeps the lowest figure."""
    reach = Reach(case)
    for node in ast.walk(program.tree):
        if not isinstance(node, ast.For) or not any(_SEED.search(n) for n in names_in(node.target)):
            continue
        if not _sets_seed(node) or not reach.possible(program.around(node)):
            continue
        kept = next((name for name in (_best(part) for part in ast.walk(node)) if name), "")
        figure = kept or _least(program, node)
        if figure:
            yield case.finding(
                RULE,
                Severity.BREACH if kept else Severity.WARNING,
                f"{program.around(node)} runs several seeds and keeps the one whose {figure} is"
                " lowest.",
                verdict="flag_other",
                pointer="data",
                line=node.lineno,
                end=node.end_lineno,
                cure=(
                    "Report the mean over seeds that were fixed beforehand; choose nothing by the"
                    " validation score."
                ),
            )
            return


def _sets_seed(node: ast.For) -> bool:
    seeds = names_in(node.target)
    return any(
        isinstance(c, ast.Call)
        and any(names_in(a) & seeds for a in (*c.args, *(k.value for k in c.keywords)))
        for s in node.body
        for c in ast.walk(s)
    )


def _best(node: ast.AST) -> str:
    """The figure of `if figure < best: best = figure`."""
    if (
        not isinstance(node, ast.If)
        or not isinstance(node.test, ast.Compare)
        or not isinstance(node.test.ops[0], (ast.Lt, ast.LtE, ast.Gt, ast.GtE))
    ):
        return ""
    sides = names_in(node.test)
    kept = {
        n for s in node.body if isinstance(s, ast.Assign) for t in s.targets for n in names_in(t)
    }
    figures = [n for n in sides if _FIGURE.search(n)]
    return figures[0] if figures and kept & sides else ""


def _least(program: Program, loop: ast.For) -> str:
    """The figure of `min(results)` behind the loop, where the loop collects results by seed."""
    filled = {
        n
        for s in loop.body
        for c in ast.walk(s)
        if isinstance(c, ast.Call) and isinstance(c.func, ast.Attribute) and c.func.attr == "append"
        for n in names_in(c.func.value)
    }
    filled |= {
        n
        for s in loop.body
        for a in ast.walk(s)
        if isinstance(a, ast.Assign)
        for t in a.targets
        if isinstance(t, ast.Subscript)
        for n in names_in(t.value)
    }
    figures = {n for s in loop.body for n in names_in(s) if _FIGURE.search(n)}
    for name, call in program.calls():
        if (
            name in {"min", "sorted"}
            and call.args
            and names_in(call.args[0]) & filled
            and figures
            and program.around(call) == program.around(loop)
        ):
            return min(figures)
    return ""


def _unset(case: Case, program: Program) -> Iterator[Finding]:
    trains = any(name_of(call.func) == "backward" for _, call in program.calls())
    if trains and not any(
        name.rpartition(".")[2] in _SETS or name.endswith("random.seed")
        for name, _ in program.calls()
    ):
        yield case.finding(
            RULE,
            Severity.WARNING,
            "The script trains and sets no seed, so that no run can be repeated.",
            pointer="limits",
            line=1,
            cure="Set a seed that the command or a variable gives, and name it in the log.",
        )


def _fixed(case: Case, program: Program) -> Iterator[Finding]:
    """A literal seed in code although the record claims several."""
    claimed = (case.submission.metadata or {}).get("seeds")
    if not isinstance(claimed, list) or len(claimed) < 2:
        return
    calls = [
        (name, c)
        for name, c in program.calls()
        if name.endswith(("torch.manual_seed", "random.seed"))
    ]
    literal = [c for _, c in calls if c.args and isinstance(c.args[0], ast.Constant)]
    if calls and len(literal) == len(calls):
        yield case.finding(
            RULE,
            Severity.WARNING,
            f"The record claims {len(claimed)} seeds; the script's seed is fixed to"
            f" {ast.unparse(literal[0].args[0])[:40]}.",
            pointer="limits",
            line=literal[0].lineno,
            cure="Take the seed from a variable, and ship the log of each.",
        )
