"""The review of one path: read it, follow its documented run, apply the rules, run it if asked,
decide.

`review` never runs a submission's code itself; with `run_code` the sandbox of `niblick.audit.smoke`
does.
"""

from __future__ import annotations

import ast
import re
import shlex
from itertools import islice
from pathlib import Path

from niblick.audit import flow
from niblick.audit.command import documented_commands
from niblick.audit.conditions import settings
from niblick.audit.flow.native import gated_outputs
from niblick.audit.flow.objects import Trace
from niblick.audit.rules import apply
from niblick.audit.rules.case import Case, scored
from niblick.audit.submission import Read, read
from niblick.audit.types import Finding, Report, RunCommand, Smoke
from niblick.audit.unpack import parse, unpack_file
from niblick.audit.verdict import decide

_WORLD_SIZE = "2"
"""Stands for every run of several processes: rank 0 of two sees what each of eight does."""
_MAX_MODULE = 600_000
_MORE_COMMANDS = 2
_NATIVE = frozenset({".c", ".cc", ".cpp", ".cu"})
_LOOP = re.compile(r"\bfor\s*\([^;()]*;[^;]*;[^)]*\)")


def review(
    path: str | Path, *, run_code: bool = False, trust: bool = False, script: str | None = None
) -> Report:
    """The report on a script or record folder; `AuditError` if there is nothing to read there."""
    from niblick.audit.record import record_findings

    found = read(Path(path), script)
    case = build_case(found)
    findings = list(apply(case))
    smoke: Smoke | None = None
    if (
        run_code
        and found.submission.source is not None
        and found.submission.source.tree is not None
    ):
        smoke, dynamic = _run(found, trust)
        findings.extend(dynamic)
    record, more = record_findings(found.submission, smoke)
    findings.extend(more)
    verdict, recommendation = decide(findings, smoke)
    return Report(
        path=str(path),
        verdict=verdict,
        recommendation=recommendation,
        findings=tuple(findings),
        smoke=smoke,
        record=record,
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
    for command in (*islice((c for c in others if c != submission.command), _MORE_COMMANDS), None):
        left = flow.MOST_STEPS - case.trace.steps
        if left <= 0:
            break
        other = _followed(found, command, left) if command != submission.command else case
        if scored(other.trace):
            return other
    return case


def _followed(found: Read, command: RunCommand | None, budget: int) -> Case:
    """The case of a submission as one command runs it, followed for so many steps at most."""
    submission = found.submission
    environment = settings(submission, found.loader_environment, command)
    arguments = _arguments(command.text, submission.script) if command is not None else []
    world = command.world_size if command else None
    trace = Trace()
    source = submission.source
    environment["WORLD_SIZE"] = (
        "1" if (world or environment.get("WORLD_SIZE")) in (1, "1") else _WORLD_SIZE
    )
    if source is not None and source.tree is not None:
        trace = flow.run(
            source.tree,
            file=source.path,
            environment=environment,
            arguments=arguments,
            modules=_modules(found),
            native=_native(found),
            budget=budget,
        )
    return Case(submission=submission, trace=trace, carried=found.carried, environment=environment)


def _run(found: Read, trust: bool) -> tuple[Smoke, tuple[Finding, ...]]:
    from niblick.audit.behaviour import behaviour
    from niblick.audit.smoke import smoke_test

    smoke = smoke_test(found.submission, trust=trust)
    dynamic = behaviour(found.submission, trust=trust) if smoke.status == "SMOKE_TEST_PASS" else ()
    return smoke, dynamic


def _modules(found: Read) -> dict[str, tuple[str, ast.Module]]:
    """Python modules that ship with the script: dotted name, and plain name where it is unique ->
    (file, tree).
    """
    script = found.submission.script
    texts = {name: text for name, text in found.carried.items() if name.endswith(".py")}
    for path in found.submission.context:
        inside = script is not None and script.parent in path.parents and path.suffix == ".py"
        if inside and script is not None and path.stat().st_size < _MAX_MODULE:
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


def _native(found: Read) -> dict[str, frozenset[int]]:
    """Functions of C sources, in files or in strings of the script, whose outputs depend on the
    token they are for.
    """
    out: dict[str, frozenset[int]] = {}
    for path in found.submission.context:
        if path.suffix in _NATIVE and path.stat().st_size < _MAX_MODULE:
            out.update(gated_outputs(path.read_text("utf-8", "replace")))
    for name, text in found.carried.items():
        if Path(name).suffix in _NATIVE:
            out.update(gated_outputs(text))
    tree = found.submission.source.tree if found.submission.source else None
    for node in ast.walk(tree) if tree is not None else ():
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and _LOOP.search(node.value)
        ):
            out.update(gated_outputs(node.value))
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
