"""Clocks: a training limit beyond the track's, time that is taken out of what the clock counts,
and scoring that ends when the clock says so.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from itertools import islice

from niblick.audit.conditions import Guard
from niblick.audit.reads import name_of
from niblick.audit.rules.case import Case
from niblick.audit.rules.program import Program
from niblick.audit.rules.reach import Reach
from niblick.audit.rules.registry import rule
from niblick.audit.types import Finding, Severity

RULE = "time-limit"
_LIMIT = re.compile(
    r"max_?wall_?clock|wall_?clock_?(?:limit|seconds|budget)|time_?(?:limit|budget)|max_?(?:train_?)?seconds",
    re.IGNORECASE,
)
_CLOCK = frozenset({"time.time", "time.perf_counter", "time.monotonic", "time.process_time"})
_WORK = frozenset({"backward", "step"})
_MOST, _GRACE = 600.0, 1.02
_TELLING = 12  # characters that a log line is known by


@rule("clock", of_text=True)
def check(case: Case) -> list[Finding]:
    """A finding per limit the track does not allow, per clock that misses training work, and for
    the first loop whose scores a clock may cut off.
    """
    if case.tree is None:
        return []
    program = case.program
    ended = islice(_ended(case, program), 1)
    return [*_limits(case), *_patched(case, program), *_stopped(case, program), *ended]


def _timed(case: Case) -> bool:
    """Whether the record claims the ten-minute track."""
    track = (case.submission.metadata or {}).get("track")
    where = f"{case.submission.root.resolve()} {track or ''}".lower()
    return "10min" in where and not re.search(r"non[-_]record|unlimited", where)


def _limits(case: Case) -> Iterator[Finding]:
    if not _timed(case):
        return
    for node in ast.walk(case.tree) if case.tree is not None else ():
        if not isinstance(node, (ast.Assign, ast.AnnAssign)):
            continue
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target
        name, value = name_of(target), node.value
        if value is None or not _LIMIT.search(name) or "eval" in name.lower():
            continue
        seconds = _setting(case, value)
        if seconds is not None and (seconds > _MOST * _GRACE or seconds <= 0):
            said = "switched off" if seconds <= 0 else f"{seconds:g} s"
            yield case.finding(
                RULE,
                Severity.WARNING,
                f"The limit {name} is {said} in the documented run, on a track of {_MOST:g} s.",
                pointer="limits",
                line=node.lineno,
                cure="Show by the logs, or in the command, that training ended within 600 s.",
            )
            return


def _setting(case: Case, value: ast.expr) -> float | None:
    """The number a setting has: a literal, or an environment variable's value with its default."""
    for part in ast.walk(value):
        if (
            isinstance(part, ast.Call)
            and isinstance(part.func, ast.Attribute)
            and part.func.attr in {"get", "getenv"}
            and part.args
        ):
            key = part.args[0].value if isinstance(part.args[0], ast.Constant) else None
            default = part.args[1] if len(part.args) > 1 else None
            told = case.environment.get(
                str(key), default.value if isinstance(default, ast.Constant) else None
            )
            return _number(told)
    return (
        _number(value.value)
        if isinstance(value, ast.Constant) and not isinstance(value.value, bool)
        else None
    )


def _number(value: object) -> float | None:
    try:
        return float(value) if isinstance(value, (int, float, str)) else None
    except ValueError:
        return None


def _patched(case: Case, program: Program) -> Iterator[Finding]:
    """A clock of the library replaced by something else."""
    for node in ast.walk(program.tree):
        if not isinstance(node, ast.Assign):
            continue
        for target in node.targets:
            if isinstance(target, ast.Attribute) and program.full_name(target) in _CLOCK:
                yield case.finding(
                    RULE,
                    Severity.BREACH,
                    f"The script replaces {program.full_name(target)}, the clock that its own limit"
                    " reads.",
                    verdict="flag_other",
                    pointer="limits",
                    line=node.lineno,
                    cure="Measure with the machine's clock, from first step to last.",
                )


def _ended(case: Case, program: Program) -> Iterator[Finding]:
    """Loops that add up the scores of a figure, and are left when a clock says so."""
    reach, trace = Reach(case), case.trace
    adding = [where for where, place in trace.summing.items() if place.sums & trace.summed]
    for function in (f for named in program.functions.values() for f in named):
        lines = [where.line for where in adding if where.function == function.name]
        times = _times(program, function) if lines else set()
        for guard, body in _leaving(function, lines):
            if not _reads(program, guard.test, times) or reach.closed(guard):
                continue
            if not _never_said(case, body):
                yield case.finding(
                    RULE,
                    Severity.WARNING,
                    f"{function.name} stops scoring when a clock says so: its figure may be of a"
                    " part of the split, and of another part on another machine.",
                    verdict="hold_unclear",
                    pointer="limits",
                    line=guard.test.lineno,
                    cure="Score every position; let a clock end adaptation alone.",
                )


def _never_said(case: Case, body: list[ast.stmt]) -> bool:
    """Whether a branch prints words that no log of a submission holds, though logs show figures."""
    texts = (
        part.value.strip()
        for statement in body
        for part in ast.walk(statement)
        if isinstance(part, ast.Constant) and isinstance(part.value, str)
    )
    said = [text for text in texts if len(text) >= _TELLING]
    lines = [line for log in case.logs for line in log] if said else []
    shown = any("bpb" in line for line in lines)
    return shown and not any(text in line for text in said for line in lines)


def _leaving(function: ast.AST, lines: list[int]) -> Iterator[tuple[Guard, list[ast.stmt]]]:
    """The conditions under which the loops around one of some lines are left from their own bodies
    (their tests, and those of breaks and returns), and what is done then.
    """
    for loop in ast.walk(function):
        if not isinstance(loop, (ast.For, ast.While)):
            continue
        if not any(loop.lineno <= line <= (loop.end_lineno or 0) for line in lines):
            continue
        if isinstance(loop, ast.While):
            yield Guard(loop.test, False), loop.orelse
        waiting = list(loop.body)
        while waiting:
            node = waiting.pop()
            if isinstance(node, (ast.For, ast.While, ast.FunctionDef, ast.ClassDef)):
                continue
            if isinstance(node, ast.If):
                for body, wanted in ((node.body, True), (node.orelse, False)):
                    if any(isinstance(each, (ast.Break, ast.Return)) for each in body):
                        yield Guard(node.test, wanted), body
            waiting += [each for each in ast.iter_child_nodes(node) if isinstance(each, ast.stmt)]


def _times(program: Program, function: ast.AST) -> set[str]:
    """Names of a function that are given a reading of a clock, or what is made of one."""
    found: set[str] = set()
    for _ in range(2):
        for node in ast.walk(function):
            if isinstance(node, ast.Assign) and _reads(program, node.value, found):
                found |= {t.id for t in node.targets if isinstance(t, ast.Name)}
    return found


def _reads(program: Program, node: ast.AST, times: set[str]) -> bool:
    """Whether an expression has a reading of a clock in it."""
    return any(
        (isinstance(part, ast.Name) and part.id in times)
        or (isinstance(part, ast.Call) and program.full_name(part.func) in _CLOCK)
        for part in ast.walk(node)
    )


def _stopped(case: Case, program: Program) -> Iterator[Finding]:
    """Training steps between a reading of the clock and the moving of its origin to after them."""
    reach = Reach(case)
    for functions in program.functions.values():
        for function in functions:
            if not reach.possible(function.name):
                continue
            for body in _blocks(function):
                for at, node in enumerate(body):
                    origin = _moved(program, node)
                    paused = _paused_from(program, body[:at], origin) if origin else None
                    if paused is not None and _learns(body[paused:at]):
                        yield case.finding(
                            RULE,
                            Severity.BREACH,
                            f"{function.name} trains between two readings of the clock and then"
                            " takes that time out of its limit.",
                            verdict="flag_other",
                            pointer="limits",
                            line=node.lineno,
                            cure=(
                                "Let the clock run from the first training step to the last,"
                                " calibration included."
                            ),
                        )
                        return


def _blocks(function: ast.AST) -> Iterator[list[ast.stmt]]:
    for node in ast.walk(function):
        for name in ("body", "orelse", "finalbody"):
            block = getattr(node, name, None)
            if isinstance(block, list) and block and isinstance(block[0], ast.stmt):
                yield block


def _moved(program: Program, node: ast.stmt) -> ast.expr | None:
    """What `origin += now - before` adds to a clock's origin (or `total -= ...` takes off), if a
    statement does that.
    """
    if (
        not isinstance(node, ast.AugAssign)
        or not isinstance(node.value, ast.BinOp)
        or not isinstance(node.value.op, ast.Sub)
    ):
        return None
    name = ast.unparse(node.target)
    direct = isinstance(node.op, ast.Add) and re.search(r"start|begin|origin|t0|since|_0$", name)
    taken = isinstance(node.op, ast.Sub) and re.search(r"elapsed|total|train|time|spent", name)
    reads = (
        isinstance(node.value.left, ast.Call) and program.full_name(node.value.left.func) in _CLOCK
    )
    return node.value.right if reads and (direct or taken) else None


def _paused_from(program: Program, before: list[ast.stmt], origin: ast.expr | None) -> int | None:
    """Where in a block the clock reading `origin` was taken."""
    name = ast.unparse(origin) if origin is not None else ""
    for at, node in enumerate(before):
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.value, ast.Call)
            and program.full_name(node.value.func) in _CLOCK
            and any(ast.unparse(t) == name for t in node.targets)
        ):
            return at
    return None


def _learns(body: list[ast.stmt]) -> bool:
    """Whether statements take a gradient and a step."""
    calls = {
        c.func.attr
        for node in body
        for c in ast.walk(node)
        if isinstance(c, ast.Call) and isinstance(c.func, ast.Attribute)
    }
    return calls >= _WORK
