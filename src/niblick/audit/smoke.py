"""The smoke test: does the script import on a CPU, what does it define, and if it fails, whose
fault is it.

Runs the script in the sandbox only. A failure is the submission's own (`IMPORT_FAIL`) or the
machine's (`ENVIRONMENT`): a package, a GPU feature, a data file or a newer Python that is not here.
`missing` names it and `cure` says what would help.
"""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from typing import Any

from niblick.audit.blame import VARIABLE, blame
from niblick.audit.orders import declared_packages, folders, job_for
from niblick.audit.sandbox import Job, Limits, Outcome, detect, run
from niblick.audit.types import Smoke, Submission

_MOST_VARIABLES = 4
_LIMITS = Limits(cpu_seconds=90, wall_seconds=150)


def smoke_test(submission: Submission, *, trust: bool = False) -> Smoke:
    """Imports the submission's script in the sandbox and describes what happened."""
    code = submission.source.shipped_bytes if submission.source else 0
    isolation = detect()
    if submission.script is None:
        return _not_run(code, isolation.kind, "there is no script")
    if not isolation.contained and not trust:
        return _not_run(
            code,
            "none",
            f"no isolation on this machine ({isolation.detail}); --trust runs it anyway",
        )
    job = job_for(submission, "smoke")
    for _ in range(_MOST_VARIABLES):
        seen = _judge(submission, run(job, trust=trust, limits=_LIMITS), code)
        missing = seen.missing or ""
        variable = missing.removeprefix(VARIABLE)
        if not missing.startswith(VARIABLE) or variable in job.arguments["environment"]:
            break
        job = _with_variable(job, variable)
    return seen


def _with_variable(job: Job, name: str) -> Job:
    """The same orders with a variable that the script insists on, set as a launcher might."""
    value = "./data" if re.search(r"PATH|DIR|FOLDER|ROOT|FILE", name) else "1"
    environment = {**job.arguments["environment"], name: value}
    return replace(job, arguments={**job.arguments, "environment": environment})


def _not_run(code: int, isolation: str, why: str) -> Smoke:
    return Smoke(
        status="NOT_RUN",
        seconds=None,
        dim=None,
        layers=None,
        vocab=None,
        parameters=None,
        code_bytes=code,
        python=_python(),
        error=why,
        missing=None,
        own_fault=None,
        cure=None,
        isolation=isolation,
    )


def _python() -> str:
    return ".".join(str(part) for part in sys.version_info[:3])


def _judge(submission: Submission, outcome: Outcome, code: int) -> Smoke:
    result = outcome.result or {}
    measured = result.get("measured") or {}
    stood_in = [str(name) for name in result.get("stood_in", ())]
    if result.get("ok"):
        status, error, missing, own, cure = (
            "SMOKE_TEST_PASS",
            None,
            ", ".join(stood_in) or None,
            None,
            None,
        )
    else:
        fault = blame(submission, outcome, stood_in, declared_packages(*folders(submission)))
        own, error, missing, cure = fault.own, fault.error, fault.missing, fault.cure
        status = "IMPORT_FAIL" if own else "ENVIRONMENT"
    return Smoke(
        status=status,
        seconds=_number(result.get("seconds"), float),
        dim=_number(measured.get("dim"), int),
        layers=_number(measured.get("layers"), int),
        vocab=_number(measured.get("vocab"), int),
        parameters=_number(measured.get("parameters"), int),
        code_bytes=code,
        python=_python(),
        error=error,
        missing=missing,
        own_fault=own,
        cure=cure,
        isolation=outcome.isolation,
    )


def _number(value: Any, kind: type) -> Any:
    """A number of the worker's report, or None where it is not one: the report describes foreign
    code.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return kind(value) if abs(value) < 1e15 else None
