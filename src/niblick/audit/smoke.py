"""The smoke test: does the script import on a CPU, what does it define, and if it fails, whose
fault is it.

Runs the script in the sandbox only. A failure is the submission's own (`IMPORT_FAIL`), the
machine's (`ENVIRONMENT`: a package, a GPU feature, a data file or a newer Python that is not here),
or a broken limit (`BROKE_LIMIT`: an endless loop, a fork bomb or a memory hog is the submission's
fault, and holds it). `missing` names what lacks and `cure` says what would help.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from niblick.audit.behaviour import findings_from
from niblick.audit.blame import VARIABLE, Blame, blame
from niblick.audit.sandbox import Bundle, Job, Limits, Outcome, detect, run
from niblick.audit.types import Finding, Severity, Smoke, Span

_MOST_VARIABLES = 4
_LIMITS = Limits(cpu_seconds=120, memory_bytes=6_000_000_000)
TAMPERED = "the script wrote to the reviewer's result channel"
"""What tampering is called, wherever it is seen."""
BROKEN = {
    "cpu": "takes more processor time than an import may",
    "idle": "waits for nothing",
    "wall": "does not end",
    "memory": "takes more memory than an import may",
    "processes": "starts more processes than an import may",
    "output": "prints without end",
    "killed": "is killed, by itself or for want of memory",
}
"""What a script did that broke the limit of that name."""


@dataclass(frozen=True, kw_only=True)
class Program:
    """What running needs to know of a script, as reading found it: its name in the folder, the
    `text` that would run, and the documented variables and packages.
    """

    script: str
    text: str = ""
    parses: bool = True
    packed: bool = False
    code_bytes: int = 0
    environment: Mapping[str, str] = field(default_factory=dict)
    declared: tuple[str, ...] = ()

    def job(self, bundle: Bundle) -> Job:
        """The worker's orders."""
        arguments = {
            "script": self.script,
            "environment": dict(self.environment),
            "declared": list(self.declared),
            "text": self.text,
        }
        return Job(task="smoke", arguments=arguments, bundle=bundle)


def smoke_test(
    program: Program, bundle: Bundle, *, trust: bool = False
) -> tuple[Smoke, tuple[Finding, ...]]:
    """Imports the script in the sandbox, probes its model, and describes what happened; findings
    are what weighs.
    """
    unknown = Smoke(
        status="NOT_RUN",
        seconds=None,
        dim=None,
        layers=None,
        vocab=None,
        parameters=None,
        code_bytes=program.code_bytes,
        python=".".join(str(part) for part in sys.version_info[:3]),
        error=None,
        missing=None,
        own_fault=None,
        cure=None,
        isolation="none",
    )
    isolation = detect()
    if not isolation.contained and not trust:
        why = f"no isolation on this machine ({isolation.detail}); --trust runs it anyway"
        return replace(unknown, error=why), ()
    for _ in range(_MOST_VARIABLES):
        outcome = run(program.job(bundle), trust=trust, limits=_LIMITS)
        seen = _judge(program, outcome, unknown)
        missing = seen.missing or ""
        variable = missing.removeprefix(VARIABLE)
        if not missing.startswith(VARIABLE) or variable in program.environment:
            break
        value = "./data" if re.search(r"PATH|DIR|FOLDER|ROOT|FILE", variable) else "1"
        program = replace(program, environment={**program.environment, variable: value})
    return seen, tuple(_weighty(program, outcome, seen))


def _judge(program: Program, outcome: Outcome, unknown: Smoke) -> Smoke:
    """The smoke test's record of one run; every number in it is the worker's word."""
    result = outcome.result or {}
    imported = result.get("ok") is True  # what ends it later is not the import's fault
    said = result.get("measured")
    measured: dict[str, Any] = said if isinstance(said, dict) else {}
    stood_in = _texts(result.get("stood_in"))
    status, fault = "SMOKE_TEST_PASS", Blame(own=False, error="")
    if outcome.tampered:
        status, fault = "TAMPERED", Blame(own=True, error=TAMPERED, cure="remove that code")
    elif not imported and broken_limit(outcome) is not None:
        status = "BROKE_LIMIT"
        error = f"importing the script broke a limit: it {BROKEN[broken_limit(outcome) or '']}"
        fault = Blame(own=True, error=error, cure="keep work behind a __main__ guard")
    elif not imported:
        plain = program.parses and not program.packed
        fault = blame(plain, _described(outcome), stood_in, set(program.declared))
        status = "IMPORT_FAIL" if fault.own else "ENVIRONMENT"
    passed = status == "SMOKE_TEST_PASS"
    return replace(
        unknown,
        status=status,
        seconds=_number(result.get("seconds"), float),
        **{name: _number(measured.get(name), int) for name in ("dim", "layers", "vocab")},
        parameters=_number(measured.get("parameters"), int),
        error=None if passed else fault.error,
        missing=(", ".join(stood_in) or None) if passed else fault.missing,
        own_fault=None if passed else fault.own,
        cure=fault.cure,
        isolation=outcome.isolation,
    )


def broken_limit(outcome: Outcome) -> str | None:
    """The limit that a run broke, by the supervisor's word or by running out of memory inside."""
    if outcome.reason in BROKEN:
        return outcome.reason
    failure = (_described(outcome).result or {}).get("failure", {})
    return "memory" if "MemoryError" in failure.get("bases", ()) else None


def _described(outcome: Outcome) -> Outcome:
    """The outcome with the description of a failure as text and numbers, whatever was said."""
    if outcome.result is None:
        return outcome
    said = outcome.result.get("failure")
    failure: dict[str, Any] = {
        str(name): value if isinstance(value, bool | int | None) else str(value)[:1000]
        for name, value in (said.items() if isinstance(said, dict) else ())
    }
    failure["bases"] = _texts(said.get("bases")) if isinstance(said, dict) else []
    return replace(outcome, result={**outcome.result, "failure": failure})


def _texts(listed: object) -> list[str]:
    return [str(each)[:100] for each in listed[:50]] if isinstance(listed, list) else []


def _weighty(program: Program, outcome: Outcome, seen: Smoke) -> Iterator[Finding]:
    """What a run showed beyond an import that goes well or fails."""
    if outcome.tampered:
        yield _whole(program, "dynamic-tampering", Severity.BREACH, TAMPERED, "flag_other")
    elif seen.status == "BROKE_LIMIT":
        said = f"{seen.error}; what it does cannot be seen"
        yield _whole(program, "dynamic-limit", Severity.WARNING, said, "hold_unclear")
    elif outcome.result is not None:
        yield from findings_from(outcome.result, program.script, packed=program.packed)
        if seen.status == "SMOKE_TEST_PASS" and (outcome.reason is not None or outcome.exit != 0):
            why = BROKEN.get(outcome.reason or "", "ends its process")
            said = f"the model could not be probed: it {why}; the verdict rests on reading"
            yield _whole(program, "dynamic-unfinished", Severity.INFO, said, None)


def _whole(
    program: Program, rule: str, severity: Severity, said: str, verdict: str | None
) -> Finding:
    """A finding about a run as a whole."""
    return Finding(
        rule=rule,
        severity=severity,
        verdict=verdict,
        span=Span(file=program.script, start=1, end=1),
        evidence=said,
        pointer="Limits and evidence: the script imports and runs within bounds",
        cure="keep work behind a __main__ guard, and leave the reviewer's process alone",
        source="dynamic",
    )


def _number(value: Any, kind: type) -> Any:
    """A number of the worker's report, or None where it is not one: the report describes foreign
    code.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return kind(value) if 0 <= value < 1e15 else None
