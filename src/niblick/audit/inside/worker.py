"""The process that meets the submission: does one task and reports what it saw over its own pipe.

Reports are numbered lines of JSON, of which the last counts. Nothing here is secret and nothing
here is trusted: a hostile script can make this process say anything. So a report is only ever a
measurement of the submission by itself. How the process ended is told by its supervisor, over a
descriptor that is not in here, verdicts are made outside, and no report takes away what reading
found. After the report the process ends at once, with whatever threads and exit handlers the
submission left.
"""

from __future__ import annotations

import importlib
import itertools
import json
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

from niblick.audit.inside.supervise import JOB_FD, RESULT_FD

Tell = Callable[[dict[str, Any]], None]
TASKS = {"read": "niblick.audit.inside.reading", "smoke": "niblick.audit.inside.smoking"}


def main() -> None:
    """Reads the job, runs its task, reports and ends the process; never returns."""
    with os.fdopen(JOB_FD, "rb") as pipe:
        job = json.loads(pipe.read())
    tell, leave = _teller(), os._exit
    try:
        result = _run(job, tell) if job["task"] != "nothing" else {}
    except BaseException:  # noqa: BLE001 - a fault of this harness, not of the submission
        result = {"harness": traceback.format_exc()[-1500:]}
    tell(result)
    leave(0)


def _run(job: dict[str, Any], tell: Tell) -> dict[str, Any]:
    task = importlib.import_module(TASKS[job["task"]])
    if job["task"] != "read":
        for name in ("niblick.audit", "niblick"):  # bare packages made to load this code
            sys.modules.pop(name, None)
    return dict(task.run(job, tell))


def _teller() -> Tell:
    """Takes hold of everything needed to report before any foreign code can replace it."""
    dumps, write, numbers = json.dumps, os.write, itertools.count(1)

    def tell(result: dict[str, Any]) -> None:
        data = dumps({**result, "number": next(numbers)}, default=str).encode() + b"\n"
        while data:
            data = data[write(RESULT_FD, data) :]

    return tell
