"""Reading in the child process: `niblick.audit.review` on the copied folder, a stage at a time.

Each stage has a budget of processor time and ends with a finding when it is spent; what was found
is told after every stage, so that the end of this process by a limit takes nothing back.
"""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from niblick.audit.inside.worker import Tell
from niblick.audit.orders import declared_packages, documented_environment, folders
from niblick.audit.review import Examined, StageError, broken, examine, plainly
from niblick.audit.types import Submission

T = TypeVar("T")
_MOST_TEXT = 2_000_000


class Overrun(BaseException):
    """Raised in a stage whose processor time is spent; no `except Exception` of a reader takes
    it.
    """


def run(job: dict[str, Any], tell: Tell) -> dict[str, Any]:
    """Reads the folder; the report holds `findings`, `record`, `understood` and, where a script
    was found, `program`: what running it needs.
    """
    signal.signal(signal.SIGPROF, _overrun)
    seen, told = Examined(), -1
    try:
        stage = partial(_bounded, job["stage_seconds"])
        for seen in examine(Path(job["folder"]), job.get("script"), stage):
            if len(seen.findings) != told:
                told = len(seen.findings)
                tell(_plain(seen))
    except (Exception, Overrun) as error:  # noqa: BLE001 - what was found by then counts
        seen.findings.append(broken(f"reading broke down ({type(error).__name__}: {error})"))
    return _plain(seen)


def _overrun(*_: Any) -> None:
    raise Overrun


def _bounded(seconds: float, name: str, work: Callable[[], T]) -> T:
    """A stage under its budget; the timer strikes again for code that swallows the first."""
    signal.setitimer(signal.ITIMER_PROF, seconds, 0.5)
    try:
        return plainly(name, work)
    except Overrun:
        raise StageError(f"{name} took over {seconds:g} s of processor time") from None
    except MemoryError:
        raise StageError(f"{name} took more memory than a review may") from None
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0.0)


def _plain(seen: Examined) -> dict[str, Any]:
    program = _program(seen.submission) if seen.submission is not None else None
    return {
        "findings": [dataclasses.asdict(finding) for finding in seen.findings],
        "record": seen.record,
        "understood": seen.understood,
        "program": program,
    }


def _program(submission: Submission) -> dict[str, Any] | None:
    if submission.script is None or submission.source is None:
        return None
    base, _ = folders(submission)
    source = submission.source
    return {
        "script": submission.script.resolve().relative_to(base).as_posix(),
        "text": source.text[:_MOST_TEXT],
        "parses": source.tree is not None,
        "packed": bool(source.layers),
        "code_bytes": source.shipped_bytes,
        "environment": documented_environment(submission),
        "declared": sorted(declared_packages(*folders(submission))),
    }
