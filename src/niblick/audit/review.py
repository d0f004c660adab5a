"""The review of one path by reading: unpack it, follow its documented run, apply the rules.

Nothing of a submission is run here. `examine` goes in stages, so that one that breaks down, or is
ended, takes nothing away from what others found; `niblick.audit.conduct` runs it in a child
process.
"""

from __future__ import annotations

import ast
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from niblick.audit import flow
from niblick.audit.command import documented_commands
from niblick.audit.conditions import settings, stated_processes
from niblick.audit.flow.native import gated_outputs
from niblick.audit.flow.objects import Trace
from niblick.audit.record import record_findings
from niblick.audit.rules import checks
from niblick.audit.rules.case import Case, scored
from niblick.audit.rules.left_out import tells_more
from niblick.audit.submission import MAX_MODULE, Read, c_sources, read
from niblick.audit.types import Finding, Report, RunCommand, Severity, Submission
from niblick.audit.unpack import parse, unpack_file
from niblick.audit.verdict import decide
from niblick.errors import NiblickError

T = TypeVar("T")
_WORLD_SIZE = "2"
"""Stands for every run of several processes: rank 0 of two sees what each of eight does."""
_MORE_COMMANDS = 2


@dataclass
class Examined:
    """What reading has found so far; `submission` is None where not even the files made sense."""

    findings: list[Finding] = field(default_factory=list)
    record: dict[str, object] = field(default_factory=dict)
    understood: bool = False
    submission: Submission | None = None


Stage = Callable[[str, Callable[[], T]], T]
"""Runs one stage of reading by its name; may raise `StageError` in place of what went wrong."""


class StageError(Exception):
    """A stage that broke down or used up what it may; the message says so in a sentence."""


def plainly(name: str, work: Callable[[], T]) -> T:
    """The stage as it is, what it raises told as a failure of that stage."""
    try:
        return work()
    except NiblickError:
        raise
    except Exception as error:
        raise StageError(
            f"{name} broke down ({type(error).__name__}: {str(error)[:200]})"
        ) from error


def examine(path: Path, script: str | None = None, stage: Any = plainly) -> Iterator[Examined]:
    """Reads a script or record folder in stages, telling after each what is known by then.

    A stage that fails is a finding that holds; what others find stands. `AuditError` if there is
    nothing to read.
    """
    seen = Examined()
    found = case = None
    with _failing(seen):
        found = stage("unpacking", lambda: read(path, script))
        seen.submission = found.submission
    yield seen
    if found is None:
        return
    with _failing(seen):
        case = stage("following the program", lambda: build_case(found))
        seen.understood = True  # how far it was followed is a rule's matter
    listed: list[tuple[str, Callable[[], list[Finding]]]] = []
    with _failing(seen):
        listed = stage("unpacking", lambda: list(checks(case))) if case is not None else []
    for name, check in listed:
        with _failing(seen):
            seen.findings += stage(f"the rule {name}", check)
        yield seen
    with _failing(seen):
        seen.record, more = stage("reading the record", lambda: record_findings(found.submission))
        seen.findings += more
    yield seen


@contextmanager
def _failing(seen: Examined) -> Iterator[None]:
    try:
        yield
    except StageError as problem:
        seen.findings.append(broken(str(problem)))


def broken(said: str) -> Finding:
    """The finding that a part of the review could not be made: it holds, and says why."""
    return Finding(
        rule="audit-failure",
        severity=Severity.WARNING,
        verdict="hold_unclear",
        span=None,
        evidence=f"{said}; what it would have found is not known",
        pointer="records: the script runs inside its folder",
        cure="ship code that can be read in bounded time, or have a person read it",
    )


def review(path: str | Path, *, script: str | None = None) -> Report:
    """The report from reading alone, in this process: for texts known to be no bombs."""
    *_, seen = examine(Path(path), script)
    verdict, recommendation = decide(seen.findings, None, understood=seen.understood)
    return Report(
        path=str(path),
        verdict=verdict,
        recommendation=recommendation,
        findings=tuple(seen.findings),
        smoke=None,
        record=seen.record,
    )


def build_case(found: Read) -> Case:
    """The case of a submission: its program followed under the documented command that reaches its
    evaluation.
    """
    submission = found.submission
    case = _followed(found, submission.command, flow.MOST_STEPS)
    if case.tree is None or scored(case.trace) or submission.script is None:
        return case
    others = documented_commands(
        submission.root, submission.script.name, submission.readme, submission.metadata
    )
    more = islice((c for c in others if c != submission.command), _MORE_COMMANDS)
    left = flow.MOST_STEPS - case.trace.steps
    for command, defaults in (*((c, False) for c in more), (None, False), (None, True)):
        repeated = command == submission.command and not defaults
        if repeated or left <= 0 or (defaults and not _silent(case.trace)):
            continue
        other = _followed(found, command, left, defaults=defaults)
        left -= other.trace.steps
        if scored(other.trace):
            return other
    return case


def _silent(trace: Trace) -> bool:
    """Whether a run was followed to its end and shows no figure at all: it only trains, and what
    scores is left to the defaults.
    """
    lost = any(note.startswith("limit:") or "not followed" in note for note in trace.notes)
    unread = any(call.name == "unread-code" for call in trace.calls)
    scores = any(event.targets for event in trace.scores)
    return trace.complete and not (lost or unread or trace.figures or scores)


def _followed(
    found: Read, command: RunCommand | None, budget: int, *, defaults: bool = False
) -> Case:
    """The case of a submission as one command runs it, or with the `defaults` of its code alone,
    followed for so many steps at most.
    """
    submission = found.submission
    loader = found.loader_environment
    environment = dict(loader) if defaults else settings(submission, loader, command)
    arguments = _arguments(command.text, submission.script) if command is not None else []
    world = (command.world_size if command else None) or environment.get("WORLD_SIZE")
    world = world or stated_processes(submission)
    trace, alone = Trace(), None
    source = submission.source
    environment["WORLD_SIZE"] = "1" if world in (1, "1") else _WORLD_SIZE
    modules = _modules(found)
    native: dict[str, frozenset[int]] = {}
    for text in c_sources(submission, found.carried):
        native.update(gated_outputs(text))
    if source is not None and source.tree is not None:
        follow = partial(
            flow.run,
            source.tree,
            file=source.path,
            arguments=arguments,
            modules=modules,
            native=native,
        )
        trace = follow(environment=environment, budget=budget)
        if environment["WORLD_SIZE"] == "1":
            alone = trace
        elif tells_more(trace):
            single = environment | {"WORLD_SIZE": "1"}
            alone = follow(environment=single, budget=max(budget - trace.steps, 1))
    return Case(
        submission=submission,
        trace=trace,
        alone=alone if alone is not None and alone.complete else None,
        carried=found.carried,
        environment=environment,
        modules=tuple(dict(modules.values()).items()),
        defaults=defaults,
    )


def _modules(found: Read) -> dict[str, tuple[str, ast.Module]]:
    """Python modules that ship with the script: dotted name, and plain name where it is unique ->
    (file, tree).
    """
    script = found.submission.script
    texts = {name: text for name, text in found.carried.items() if name.endswith(".py")}
    for path in found.submission.context:
        inside = script is not None and script.parent in path.parents and path.suffix == ".py"
        if inside and script is not None and path.stat().st_size < MAX_MODULE:
            texts.setdefault(
                path.relative_to(script.parent).as_posix(), unpack_file(path).source.text
            )
    out: dict[str, tuple[str, ast.Module]] = {}
    for file, text in sorted(texts.items(), key=lambda item: item[0].count("/")):
        try:
            tree = parse(text)
        except (SyntaxError, ValueError, RecursionError):
            continue
        dotted = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        out[dotted] = (file, tree)
        out.setdefault(dotted.rpartition(".")[2], (file, tree))
    return out


def _arguments(command: str, script: Path | None) -> list[str]:
    """The words of a command after the script's name."""
    try:
        words = shlex.split(command, comments=True)
    except ValueError:
        words = command.split()
    for i, word in enumerate(words):
        if script is not None and word.endswith(script.name):
            return words[i + 1 :]
    return []
