"""The process that meets the submission: does one task and reports it once, over its own pipe.

The report is framed with a code keyed by a nonce that no submission is told, so that text written
to standard output, or to the pipe, is never taken for a result. What a hostile script could still
learn by inspecting the process is a measurement of itself; verdicts are made outside. After the
report the process ends at once, with whatever threads and exit handlers the submission left.
"""

from __future__ import annotations

import hashlib
import hmac
import importlib
import json
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

from niblick.audit.inside.supervise import JOB_FD, RESULT_FD

TASKS = {
    "nothing": "niblick.audit.inside.nothing",
    "import": "niblick.audit.inside.importing",
    "smoke": "niblick.audit.inside.smoking",
    "behaviour": "niblick.audit.inside.behaving",
}


def frame(nonce: str, payload: bytes) -> bytes:
    """`payload` with its length and a keyed code in front: `NIBLICK <hex digest> <length>` and a
    newline.
    """
    code = hmac.new(nonce.encode(), payload, hashlib.sha256).hexdigest()
    return f"NIBLICK {code} {len(payload)}\n".encode() + payload


def main() -> None:
    """Reads the job, runs its task, reports and ends the process; never returns."""
    with os.fdopen(JOB_FD, "rb") as pipe:
        job = json.loads(pipe.read())
    finish = _reporter(job.pop("nonce"))
    try:
        task: Callable[[dict[str, Any]], dict[str, Any]] = importlib.import_module(
            TASKS[job["task"]]
        ).run
        for name in (
            "niblick.audit",
            "niblick",
        ):  # bare namespaces made to load this code; not for submissions
            sys.modules.pop(name, None)
        result = task(job)
    except BaseException:  # noqa: BLE001 - a fault of this harness, which must not look like the submission's
        result = {"harness": traceback.format_exc()[-1500:]}
    finish(result)


def _reporter(nonce: str) -> Callable[[dict[str, Any]], None]:
    """Takes hold of everything needed to report before any foreign code can replace it."""
    dumps, write, leave, sealed = json.dumps, os.write, os._exit, frame

    def finish(result: dict[str, Any]) -> None:
        data = sealed(nonce, dumps(result, default=str).encode())
        while data:
            data = data[write(RESULT_FD, data) :]
        leave(0)

    return finish
