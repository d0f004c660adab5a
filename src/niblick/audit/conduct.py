"""The audit of one path: copy it, read the copy in a child process, run it in others, decide.

This process looks at no text of a submission: it copies bytes, and checks what the children say.
What reading found stands whatever a run shows; a run can only add to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from niblick.audit.review import broken
from niblick.audit.sandbox import Job, Limits, Outcome, detect
from niblick.audit.sandbox.child import run_in
from niblick.audit.smoke import Program, smoke_test
from niblick.audit.snapshot import Snapshot, take
from niblick.audit.types import Finding, Report, Severity, Smoke, Span
from niblick.audit.verdict import VERDICTS, decide

READING = Limits(
    cpu_seconds=25,
    idle_seconds=10.0,
    memory_bytes=1_500_000_000,
    address_bytes=2_000_000_000,
    result_bytes=32_000_000,
)
_MOST_FINDINGS, _LONGEST = 1_000, 4_000
_SOURCES = ("static", "record")


@dataclass
class Reading:
    """What the reading child said, checked."""

    findings: list[Finding] = field(default_factory=list)
    record: dict[str, object] = field(default_factory=dict)
    understood: bool = False
    program: Program | None = None


def audit(
    path: Path, *, run_code: bool = True, trust: bool = False, script: str | None = None
) -> Report:
    """The report on a script or record folder; `AuditError` if it lacks `script`.

    With `run_code` its code runs, in the sandbox of this machine, or without walls by `trust`.
    """
    taken = take(path, script)
    try:
        reading = _read(taken) if taken.readable else Reading()
        findings = [*taken.findings(), *reading.findings]
        smoke: Smoke | None = None
        if run_code and reading.program is not None and reading.program.parses:
            smoke, seen = smoke_test(reading.program, taken.bundle, trust=trust)
            findings += seen
            findings += other_parameters(reading.record, smoke.parameters)
    finally:
        taken.bundle.close()
    verdict, recommendation = decide(findings, smoke, understood=reading.understood)
    return Report(
        path=str(path),
        verdict=verdict,
        recommendation=recommendation,
        findings=tuple(findings),
        smoke=smoke,
        record=reading.record,
    )


def _read(taken: Snapshot) -> Reading:
    """Reading in a child: behind walls where there are any; no code of the submission runs."""
    arguments: dict[str, Any] = {"stage_seconds": READING.cpu_seconds / 2}
    if taken.script is not None:
        arguments["script"] = taken.script
    job = Job(task="read", arguments=arguments, bundle=taken.bundle, place=taken.place)
    outcome = run_in(detect(), job, READING)
    try:
        reading = _checked(outcome.result or {"findings": []})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reading = Reading(findings=[broken(f"reading gave no proper report ({error!r:.200})")])
    why = _ended_early(outcome)
    if why is not None:
        reading.findings.append(broken(f"reading ended early ({why})"))
    return reading


def _ended_early(outcome: Outcome) -> str | None:
    """Why reading came to no proper end, or None."""
    if outcome.reason == "sandbox":
        return f"no sandbox: {outcome.error or outcome.output[-300:] or 'it gave no word'}"
    if outcome.reason is not None:
        return f"over the limit of {outcome.reason}"
    if outcome.exit != 0:
        return f"its process ended with {outcome.exit}"
    if outcome.result is not None and "harness" in outcome.result:
        return str(outcome.result["harness"]).strip().rpartition("\n")[2]
    return "its report is damaged" if outcome.tampered or outcome.result is None else None


def _checked(result: dict[str, Any]) -> Reading:
    """The child's report as values; raises where anything in it is not what it must be."""
    listed = result.get("findings", [])
    if len(listed) > _MOST_FINDINGS:
        raise ValueError(f"{len(listed)} findings")
    record = result.get("record", {})
    if not isinstance(record, dict):
        raise TypeError("a record that is no object")
    given = result.get("program")
    return Reading(
        findings=[_finding(each) for each in listed],
        record=record,
        understood=result.get("understood") is True,
        program=None if given is None else _program(given),
    )


def _finding(given: dict[str, Any]) -> Finding:
    verdict, span, source = given["verdict"], given["span"], given["source"]
    if (verdict is not None and verdict not in VERDICTS) or source not in _SOURCES:
        raise ValueError(f"a finding with verdict {verdict!r} from {source!r}")
    return Finding(
        rule=_text(given["rule"]),
        severity=Severity(given["severity"]),
        verdict=verdict,
        span=None if span is None else _span(span),
        evidence=_text(given["evidence"]),
        pointer=_text(given["pointer"]),
        cure=_text(given["cure"]),
        source=source,
    )


def _span(given: dict[str, Any]) -> Span:
    return Span(
        file=_text(given["file"]),
        start=int(given["start"]),
        end=int(given["end"]),
        unpacked=given["unpacked"] is True,
    )


def _program(given: dict[str, Any]) -> Program:
    return Program(
        script=_text(given["script"]),
        text=str(given["text"]),
        parses=given["parses"] is True,
        packed=given["packed"] is True,
        code_bytes=int(given["code_bytes"]),
        environment={_text(name): _text(value) for name, value in given["environment"].items()},
        declared=tuple(_text(name) for name in given["declared"]),
    )


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{type(value).__name__} in place of text")
    return value[:_LONGEST]


def other_parameters(record: dict[str, object], own: int | None) -> Iterator[Finding]:
    """Whether every log and the claim speak of another number of parameters than the model that
    was built has: the logs are then of other code or other settings.
    """
    logs = record.get("logs")
    said = {"submission.json": record.get("claimed_parameters")}
    for log in logs if isinstance(logs, list) else ():
        if isinstance(log, dict):
            said[str(log.get("file"))] = log.get("parameters")
    counts = {
        name: count for name, count in said.items() if isinstance(count, int) and count > 10_000
    }
    if own is None or not counts or any(abs(each - own) <= own * 0.002 for each in counts.values()):
        return
    name, count = next(iter(counts.items()))
    yield Finding(
        rule="record-parameters",
        severity=Severity.WARNING,
        verdict=None,
        span=Span(file=name, start=1, end=1),
        evidence=f"{name} speaks of {count:,} parameters, the model this code builds has {own:,}: "
        "the log is of other code or other settings",
        pointer="Limits and evidence: logs come from the script that is shipped",
        cure="ship the script that made the logs, or its settings",
        source="record",
    )
