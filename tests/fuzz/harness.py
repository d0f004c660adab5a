"""What the command line promises for any input, and a case of one command line that is held to it.

The promise: the documented exit code, one short line on standard error where the command fails, no
traceback, bounded memory and time, and nothing half-written.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fuzz.server import CPU_SECONDS, MEMORY

MAX_LINE = 200  # beside the paths of the command line, which a message may name twice
MAX_PEAK = 1_500_000_000
_OWN_LIST = " uses: "  # what follows is a list of this project's own names
_NOTES = ("warning:", "note:", "opened ", "training ", "float weights", "run directory:")


@dataclass(frozen=True)
class Result:
    """What one command did: exit code, output, processor seconds, and bytes of memory it took."""

    arguments: list[str]
    code: int
    out: str
    err: str
    seconds: float
    peak: int


class Server:
    """The process that runs commands; see `fuzz.server`."""

    def __init__(self, scratch: Path, environment: Mapping[str, str] | None = None) -> None:
        self._scratch = scratch
        self._sanitized = environment is not None
        self._process = subprocess.Popen(
            [sys.executable, "-m", "fuzz.server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": _path(),
                **(environment or {}),
            },
        )
        self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def run(self, arguments: list[str], folder: Path) -> Result:
        """Run one command in `folder`."""
        out, err = self._scratch / "out", self._scratch / "err"
        request = {
            "arguments": arguments,
            "folder": str(folder),
            "out": str(out),
            "err": str(err),
            "memory": 0 if self._sanitized else MEMORY,  # a sanitizer maps the whole address space
        }
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._answer()
        texts = (path.read_text("utf-8", "replace") for path in (out, err))
        return Result(arguments, answer["code"], *texts, answer["seconds"], answer["peak"])

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def _path() -> str:
    return os.pathsep.join(str(Path(entry).resolve()) for entry in sys.path if entry)


@contextmanager
def server(
    scratch: Path, environment: Mapping[str, str] | None = None
) -> Iterator[Callable[..., Result]]:
    """A running server's `run`, for the block."""
    running = Server(scratch, environment)
    try:
        yield running.run
    finally:
        running.close()


def broken_promises(result: Result, left: list[str]) -> list[str]:
    """What is wrong with `result`; `left` are the files that the command left behind it."""
    found = []
    lines = [line for line in result.err.splitlines() if not line.startswith(_NOTES)]
    if result.code not in (0, 1, 2, 3):
        found.append(f"exit code {result.code}")
    if "Traceback" in result.err or "Sanitizer" in result.err or "runtime error:" in result.err:
        found.append("a traceback or a sanitizer's report")
    if result.code == 2 and len(lines) != 1:
        found.append(f"{len(lines)} lines on standard error")
    if result.code == 2 and not (lines and lines[-1].startswith("niblick: ")):
        found.append("no message of niblick's own")
    room = MAX_LINE + 2 * max(map(len, result.arguments))
    if result.code == 2 and any(len(line.partition(_OWN_LIST)[0]) > room for line in lines):
        found.append(f"a line of {max(map(len, lines))} characters")
    if result.seconds > CPU_SECONDS - 5:
        found.append(f"{result.seconds:.0f} s of processor time")
    if result.peak > MAX_PEAK:
        found.append(f"{result.peak / 1e6:.0f} MB of memory")
    half = [name for name in left if name.endswith((".tmp", ".writing")) or "/." in f"/{name}"]
    if half := [name for name in half if not name.endswith(".lock")]:
        found.append(f"half-written: {half[0]}")
    if result.code == 2 and {"new", "new.safetensors"} & set(left):
        found.append("output of a command that failed")
    return found


def files_of(folder: Path) -> list[str]:
    """Every file and folder below `folder`, by relative name."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))
