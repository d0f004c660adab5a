"""Entry of the child process: reads its orders from standard input, raises the walls, supervises
the worker.

Orders are one JSON object. Modes: `namespaces` (walls are built here; any that cannot be is a
refusal) and `bare` (limits only; the caller was told to trust the code, or only reads). How it
ended goes to the control descriptor, which the worker does not have.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from niblick.audit.inside import libc, seccomp, walls
from niblick.audit.inside.supervise import supervise


def main() -> None:
    """Never returns: ends the process with 0 where the control message was written, else 96."""
    config = json.loads(sys.stdin.buffer.read())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        libc.prctl(libc.PR_SET_PDEATHSIG, signal.SIGKILL)
    if config["mode"] == "namespaces":
        _report_failure(config, _inside_namespaces)
    _report_failure(config, _run)


def _run(config: dict[str, Any]) -> None:
    if sys.platform == "linux":  # the worker must not read this process's memory or descriptors
        libc.prctl(libc.PR_SET_DUMPABLE, 0)
        libc.prctl(libc.PR_SET_CHILD_SUBREAPER, 1)  # nor leave it: orphans come back here
    _tell(config, supervise(config))


def _inside_namespaces(config: dict[str, Any]) -> None:
    """Builds the walls in process 1; the caller stays outside only to wait for it."""
    if seccomp.program() is None:
        raise OSError(f"no system-call filter is known for {os.uname().machine}")
    first = walls.enter()
    if first:
        os.close(config["result"])
        _, status = os.waitpid(first, 0)
        os._exit(0 if status == 0 else 96)
    libc.prctl(libc.PR_SET_PDEATHSIG, signal.SIGKILL)
    walls.build(config["root"], config["binds"], config["limits"]["scratch_bytes"])
    _run(config)


def _report_failure(config: dict[str, Any], step: Callable[[dict[str, Any]], None]) -> None:
    try:
        step(config)
    except Exception as error:  # noqa: BLE001 - the parent must learn why, whatever it was
        _tell(config, {"reason": "sandbox", "error": f"{type(error).__name__}: {error}"})
        os._exit(96)
    os._exit(0)


def _tell(config: dict[str, Any], message: dict[str, Any]) -> None:
    os.write(config["control"], json.dumps(message).encode())
