"""Which settings the documented run has, and what conditions of the script they decide.

A setting is taken from the first of these that gives it:

1. what the script's own loader sets;
2. the command under review: a launch of the script in the README's code blocks or in
   `submission.json`, with the assignments that stand before it;
3. the folder's run script, where exactly one shell script launches the training script;
4. `NAME=value` in the README's prose, where README and code blocks give one value only and no
   command is shown;
5. the logs: a dump of settings, or a line that only a switched-on part can have printed (lines of
   the script itself, which some logs begin with, are no evidence);
6. the default in the code.

A condition that these decide is decided, in the engine and in the rules that look at text alike; a
branch that is off is not reached.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Container, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from niblick.audit.command import prose_settings, shell_commands
from niblick.audit.reads import (
    CASTS,
    OFF,
    UNDECIDED,
    compared,
    direct_reads,
    environment_reads,
    holds,
    is_number,
    name_of,
    plain,
)
from niblick.audit.types import RunCommand, Submission

_MAX_LOG = 3_000_000
_MAX_LOGS = 8
_DUMP = re.compile(r"(?<![\w.\-/])([A-Za-z_]\w*)\s?[:=]\s?([^\s,;(){}\[\]]+)")
_PRINTS = re.compile(r"print|log|write|echo|info|warn|report|say|emit", re.IGNORECASE)
_LAUNCHER = frozenset(
    {"RANK", "LOCAL_RANK", "RUN_ID", "SEED", "DATA_PATH", "DATA_DIR", "TOKENIZER_PATH"}
)
_MIN_LITERAL = 8
_NUMBER = re.compile(r"\d+")
_FIELD = re.compile(r"%[-#0 +]*[\d.]*[a-zA-Z]|\{[^{}]*\}")
_GAP = "\0"
_PROCESSES = re.compile(r"\bworld_size\s*[:=]\s*(\d+)\b")
_ACCELERATORS = re.compile(
    r"\b(\d{1,2}) ?[x×] ?(?:NVIDIA )?(?:GeForce )?(?:RTX ?|[A-Z]{1,3})\d{2,4}\b"
)
_SHOWS = re.compile(r"\bval_(?:loss|bpb)\s*[:=]\s*\d")
_DEPTH = 8


@dataclass(frozen=True)
class Guard:
    """A condition that must be true (or false) for a piece of code to run."""

    test: ast.expr
    wanted: bool


@dataclass(frozen=True)
class Printed:
    """The words of a line that a script prints, in order, between what it fills in."""

    pieces: tuple[str, ...]
    guards: tuple[Guard, ...]
    function: str

    @property
    def size(self) -> int:
        return sum(map(len, self.pieces))

    def names(self, variables: Container[str]) -> bool:
        """Whether the words are the name of a setting alone, which any dump of settings prints."""
        return len(self.pieces) == 1 and self.pieces[0].strip(" :=") in variables


def in_order(pieces: Iterable[str], line: str) -> bool:
    """Whether a line holds these words one after another."""
    at = 0
    for piece in pieces:
        found = line.find(piece, at)
        if found < 0:
            return False
        at = found + len(piece)
    return True


def settings(
    submission: Submission, loader: dict[str, str], command: RunCommand | None
) -> dict[str, str]:
    """The environment of a run by the order of precedence above, defaults aside."""
    source, script = submission.source, submission.script
    if source is None or source.tree is None or script is None:
        return {**(command.environment if command else {}), **loader}
    shown = settings_from_logs(source.tree, source.text, submission.root)
    stated = prose_settings(submission.readme) if command is None else {}
    launched = list(shell_commands(submission.root, script.name, submission.readme))
    run_script = launched[0].environment if len(launched) == 1 else {}
    own = command.environment if command else {}
    found: dict[str, str] = {}
    for given in (shown, stated, run_script, own, loader):  # what a shell fills in gives no value
        found |= {name: value for name, value in given.items() if "$" not in value}
    return found


def stated_processes(submission: Submission) -> int | None:
    """On how many accelerators the run was made where no command says it: by the logs, else by
    `submission.json`, else by what the README says first.
    """
    for text in (_logged(submission), str(submission.metadata or ""), submission.readme or ""):
        if (found := _processes(text)) is not None:
            return found
    return None


def logged_processes(submission: Submission) -> int | None:
    """On how many accelerators the run was made, by its logs."""
    return _processes(_logged(submission))


def _logged(submission: Submission) -> str:
    source = submission.source
    return "\n".join(log_lines(submission.root, source.text if source else "")[:2000])


def _processes(text: str) -> int | None:
    found = _PROCESSES.search(text) or _ACCELERATORS.search(text)
    return int(found[1]) if found is not None else None


def settings_from_logs(tree: ast.Module, text: str, root: Path) -> dict[str, str]:
    """Environment variables, by name, that the logs in `root` show to have differed from the
    defaults.
    """
    lines = log_lines(root, text)
    if not lines:
        return {}
    scan = Scan(tree)
    found = _dumped(lines, scan)
    said = list(dict.fromkeys(_NUMBER.sub("0", line) for line in lines))
    blob = "\n".join(said)
    printed = [p for p in scan.printed if all(piece in blob for piece in p.pieces)]
    for line in said:
        fitting = [p for p in printed if in_order(p.pieces, line)]
        longest = max((p.size for p in fitting), default=0)
        fitting = [p for p in fitting if p.size == longest]
        if len({p.guards for p in fitting}) == 1 and not fitting[0].names(scan.variables):
            for one in fitting:
                for guard in [*one.guards, *scan.guards_of_calls(one.function, 0)]:
                    scan.satisfy(guard, found)
    return {key: value for key, value in found.items() if key not in _LAUNCHER}


def log_lines(root: Path, text: str) -> list[str]:
    """The lines of all logs in a folder, as `logs` gives them."""
    return [line for lines in logs(root, text) for line in lines]


def logs(root: Path, text: str) -> list[list[str]]:
    """The lines of each log in a folder, without those of the script `text` that some logs begin
    with: files that are called logs, and other texts that show figures.
    """
    source = set(map(str.strip, text.splitlines()))
    patterns = ("*.log", "*log*.txt", "*train*.txt", "logs/*")
    called = sorted({path for pattern in patterns for path in root.glob(pattern)})
    others = sorted({*root.glob("*.txt")} - {*called})
    out: list[list[str]] = []
    for path in [p for p in (*called, *others) if p.is_file() and not p.is_symlink()]:
        if len(out) == _MAX_LOGS:
            break
        with path.open("rb") as handle:
            text = handle.read(_MAX_LOG).decode("utf-8", "replace")
        if path in called or _SHOWS.search(text):
            lines = text.splitlines()
            out.append([line for line in lines if line.strip() and line.strip() not in source])
    return out


def _dumped(lines: list[str], scan: Scan) -> dict[str, str]:
    """Settings printed as `name: value`, for attributes read from the environment."""
    found: dict[str, str] = {}
    for line in lines[:2000]:
        for match in _DUMP.finditer(line[:2000]):
            if match[1] not in scan.variables:
                continue
            key, default = scan.variables[match[1]]
            value = {"True": "1", "False": "0"}.get(match[2], match[2].strip("'\""))
            fits = default is None or not is_number(default) or is_number(value)
            if value != default and key not in _LAUNCHER and len(value) < 60 and fits:
                found.setdefault(key, value)
    return found


class Scan:
    """Where a script prints what, under which conditions, and which names come from the
    environment.
    """

    def __init__(self, tree: ast.Module) -> None:
        self.variables: dict[str, tuple[str, str | None]] = {}
        self.aliases: dict[str, ast.expr] = {}
        self.calls: dict[str, list[tuple[tuple[Guard, ...], str]]] = {}
        self.printed: list[Printed] = []
        self._walk(tree.body, (), "<module>")

    def _walk(self, body: list[ast.stmt], guards: tuple[Guard, ...], function: str) -> None:
        for node in body:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                self._walk(node.body, (), node.name)
            elif isinstance(node, ast.ClassDef):
                self._walk(node.body, (), function)
            elif isinstance(node, ast.If):
                self._expression(node.test, guards, function)
                self._walk(node.body, (*guards, Guard(node.test, True)), function)
                self._walk(node.orelse, (*guards, Guard(node.test, False)), function)
            else:
                if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None:
                    self._assignment(node)
                for value in ast.iter_child_nodes(node):
                    if isinstance(value, ast.expr):
                        self._expression(value, guards, function)
                for name in ("body", "orelse", "finalbody"):
                    self._walk(getattr(node, name, []), guards, function)
                for handler in getattr(node, "handlers", []):
                    self._walk(handler.body, guards, function)
                for item in getattr(node, "items", []):
                    self._expression(item.context_expr, guards, function)

    def _assignment(self, node: ast.Assign | ast.AnnAssign) -> None:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        for target in targets:
            name = name_of(target)
            if not name or node.value is None:
                continue
            read = next(environment_reads(node.value), None)
            if read is not None:
                self.variables.setdefault(name, read)
            else:
                self.aliases.setdefault(name, node.value)

    def _expression(self, node: ast.expr, guards: tuple[Guard, ...], function: str) -> None:
        if isinstance(node, ast.IfExp):
            self._expression(node.body, (*guards, Guard(node.test, True)), function)
            self._expression(node.orelse, (*guards, Guard(node.test, False)), function)
            return
        if isinstance(node, ast.Call):
            name = name_of(node.func)
            self.calls.setdefault(name, []).append((guards, function))
            if _PRINTS.search(name):
                self._printed(node, guards, function)

        for child in ast.iter_child_nodes(node):
            value = child.value if isinstance(child, ast.keyword) else child
            if isinstance(value, ast.expr):
                self._expression(value, guards, function)

    def _printed(self, node: ast.expr, guards: tuple[Guard, ...], function: str) -> None:
        """The lines that what is printed consists of."""
        for line in self._said(node, guards, function).split("\n"):
            words = (_NUMBER.sub("0", piece).strip() for piece in line.split(_GAP))
            printed = Printed(tuple(word for word in words if word), guards, function)
            if printed.size >= _MIN_LITERAL:
                self.printed.append(printed)

    def _said(self, node: ast.AST, guards: tuple[Guard, ...], function: str) -> str:
        """The text of an expression, with gaps for what is not known; what it says under a
        condition of its own is taken down apart.
        """
        if isinstance(node, ast.Constant):
            return node.value if isinstance(node.value, str) else _GAP
        if isinstance(node, ast.IfExp):
            self._printed(node.body, (*guards, Guard(node.test, True)), function)
            self._printed(node.orelse, (*guards, Guard(node.test, False)), function)
        if isinstance(node, (ast.IfExp, ast.Subscript, ast.Compare)):
            return _GAP
        if isinstance(node, ast.FormattedValue):
            plain = isinstance(node.value, (ast.IfExp, ast.Constant, ast.JoinedStr))
            return self._said(node.value, guards, function) if plain else _GAP
        parts = [self._said(part, guards, function) for part in ast.iter_child_nodes(node)]
        if isinstance(node, ast.JoinedStr) or (
            isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add)
        ):
            return "".join(parts)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod):
            return _FIELD.sub(_GAP, parts[0])
        if isinstance(node, ast.Call) and name_of(node.func) == "format":
            return _FIELD.sub(_GAP, parts[0])
        return _GAP.join(parts)

    def guards_of_calls(self, function: str, depth: int) -> list[Guard]:
        """Conditions that every way to a function shares, where there are few ways."""
        sites = self.calls.get(function, [])
        if depth > 4 or not sites or len(sites) > 3:
            return []
        ways = [[*guards, *self.guards_of_calls(outer, depth + 1)] for guards, outer in sites]
        shared = set.intersection(*({(ast.dump(g.test), g.wanted) for g in way} for way in ways))
        return [g for g in ways[0] if (ast.dump(g.test), g.wanted) in shared]

    def satisfy(self, guard: Guard, found: dict[str, str], depth: int = 0) -> None:
        """Adds to `found` the variable values that make a condition what it must be."""
        test = guard.test
        if depth > 5:
            return
        if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.And) == guard.wanted:
            for part in test.values:
                self.satisfy(Guard(part, guard.wanted), found, depth + 1)
        elif isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            self.satisfy(Guard(test.operand, not guard.wanted), found, depth + 1)
        elif isinstance(test, ast.Compare) and len(test.ops) == 1 and guard.wanted:
            self._compared(test, found)
        else:
            self._named(test, guard.wanted, found, depth)

    def _compared(self, test: ast.Compare, found: dict[str, str]) -> None:
        """The nearest value that a comparison with a number holds for, where the default fails
        it.
        """
        right = test.comparators[0]
        variable = self.variable(test.left)
        if variable is None or not isinstance(right, ast.Constant):
            return
        (key, default), bound = variable, right.value
        if isinstance(test.ops[0], ast.Eq) and isinstance(bound, (str, int)):
            found.setdefault(key, str(bound))
        if default is None or not isinstance(bound, (int, float)):
            return
        usual = plain(default or "0")
        nearest = next((n for n in (bound, bound + 1, bound - 1) if holds(test, n, bound)), None)
        if nearest is not None and not holds(test, usual, bound):
            found.setdefault(key, str(nearest))

    def _named(self, test: ast.expr, wanted: bool, found: dict[str, str], depth: int) -> None:
        variable = self.variable(test) or next(environment_reads(test), None)
        if variable is not None:
            key, default = variable
            if wanted and default is not None and default in OFF:
                found.setdefault(key, "1")
            return
        name = name_of(test)
        if name in self.aliases:
            self.satisfy(Guard(self.aliases[name], wanted), found, depth + 1)

    def decided(self, test: ast.expr, environment: dict[str, str], depth: int = 0) -> Any:
        """The value that settings and defaults give an expression; `UNDECIDED` where they do
        not.
        """
        if depth > _DEPTH:
            return UNDECIDED
        if isinstance(test, ast.Constant):
            return test.value
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            value = self.decided(test.operand, environment, depth + 1)
            return value if value is UNDECIDED else not value
        if isinstance(test, ast.BoolOp):
            return self._joined(test, environment, depth)
        if isinstance(test, ast.Compare) and len(test.ops) == 1:
            sides = (test.left, test.comparators[0])
            values = [self.decided(side, environment, depth + 1) for side in sides]
            return UNDECIDED if UNDECIDED in values else compared(test.ops[0], *values)
        read = self.variable(test) or next(direct_reads(test), None)
        if read is not None:
            text = environment.get(read[0], read[1])
            return UNDECIDED if text is None else plain(text)
        if isinstance(test, ast.Call) and len(test.args) == 1 and name_of(test.func) in CASTS:
            return self.decided(test.args[0], environment, depth + 1)
        alias = self.aliases.get(name_of(test)) if isinstance(test, ast.Name) else None
        return UNDECIDED if alias is None else self.decided(alias, environment, depth + 1)

    def _joined(self, test: ast.BoolOp, environment: dict[str, str], depth: int) -> Any:
        stop = isinstance(test.op, ast.Or)
        values = [self.decided(part, environment, depth + 1) for part in test.values]
        if any(v is not UNDECIDED and bool(v) == stop for v in values):
            return stop
        return UNDECIDED if any(v is UNDECIDED for v in values) else not stop

    def variable(self, node: ast.expr) -> tuple[str, str | None] | None:
        """(environment variable, default) behind a name or attribute, if it was read from the
        environment.
        """
        name = name_of(node)
        return self.variables.get(name) if name else None
