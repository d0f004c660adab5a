"""Runs command lines in forked children of one process that has everything imported already.

Reads requests from standard input, one JSON object a line, and answers likewise. Children run under
limits of memory, processor time and file size; what they print goes to files.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any

CPU_SECONDS, WALL_SECONDS = 40, 120
MEMORY = 3_000_000_000  # bytes of address space beside what the parent has
ESCAPED = 70  # exit code of a child that an exception left


def _warm_up() -> None:
    """Import every command, and what the commands import when they run."""
    import torch

    from niblick.cli import COMMANDS

    torch.set_num_threads(1)
    commands = [target.partition(":")[0] for target, _ in COMMANDS.values()]
    for name in (*commands, "niblick.exchange.foreign", "niblick.report.run"):
        import_module(name)


def _limit(memory: int) -> None:
    if memory:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        size = pages * resource.getpagesize() + memory
        resource.setrlimit(resource.RLIMIT_AS, (size, size))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 5))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 28, 1 << 28))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _child(request: dict[str, Any]) -> int:
    from niblick.cli import main

    os.chdir(request["folder"])
    for number, name in ((0, os.devnull), (1, request["out"]), (2, request["err"])):
        flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        os.dup2(os.open(name, flags), number)
    _limit(request["memory"])
    try:
        main(request["arguments"])
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    except BaseException:  # noqa: BLE001  # the very thing to find
        traceback.print_exc()
    return ESCAPED


def _run(request: dict[str, Any]) -> dict[str, Any]:
    child = os.fork()
    if child == 0:
        code = ESCAPED
        try:
            code = _child(request)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    end = time.monotonic() + WALL_SECONDS
    while True:
        done, status, usage = os.wait4(child, os.WNOHANG)
        if done:
            break
        if time.monotonic() > end:
            os.kill(child, 9)
        time.sleep(0.005)
    return {
        "code": os.waitstatus_to_exitcode(status),
        "seconds": usage.ru_utime + usage.ru_stime,
        "peak": usage.ru_maxrss * 1024,
    }


def serve() -> None:
    """Answer requests until standard input ends."""
    _warm_up()
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    sys.stdout.write(json.dumps({"ready": base}) + "\n")
    sys.stdout.flush()
    for line in sys.stdin:
        answer = _run(json.loads(line))
        answer["peak"] = max(0, answer["peak"] - base)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    serve()
