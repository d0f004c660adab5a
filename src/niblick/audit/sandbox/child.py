"""Starts the child, pumps its pipes within bounds, and tells how it ended apart from what it says
of itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

from niblick.audit.sandbox import isolation as walls
from niblick.audit.sandbox.isolation import Isolation, Limits, detect
from niblick.errors import AuditError

_KEPT_OUTPUT = 32_768
_GRACE_SECONDS = 10.0
_running: set[subprocess.Popen[bytes]] = set()
_starting = threading.Lock()
_stopped = threading.Event()


class Bundle:
    """The files of one scratch folder, packed once into a file of the auditor's own for every run
    that needs them.
    """

    def __init__(self, files: Mapping[str, bytes] = MappingProxyType({})) -> None:
        self._file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - see `close`
        self._entries: list[tuple[str, int, int, int]] = []
        for name, data in files.items():
            self.add(name, data)

    def add(self, name: str, data: bytes, size: int | None = None) -> None:
        """Takes a file in; one longer than `data` reads as zeros from there on."""
        start = self._file.seek(0, os.SEEK_END)
        self._file.write(data)
        self._entries.append((name, start, len(data), max(len(data), size or 0)))

    def sizes(self) -> dict[str, int]:
        """Names and sizes of the files."""
        return {name: size for name, _, _, size in self._entries}

    def orders(self, place: str) -> tuple[int, list[tuple[str, int, int, int]]]:
        """The descriptor to read from, and its files as they are to be written below `place`."""
        self._file.flush()
        prefix = f"{place}/" if place else ""
        named = [
            (prefix + name, start, length, size) for name, start, length, size in self._entries
        ]
        return self._file.fileno(), named

    def close(self) -> None:
        """Gives the space back."""
        self._file.close()


@dataclass(frozen=True, kw_only=True)
class Job:
    """One task for the worker, its arguments, and the files it finds in its scratch folder, below
    `place`.
    """

    task: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    bundle: Bundle = field(default_factory=Bundle)
    place: str = ""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run ended, and what the worker said.

    `result` is its last report, None where there was none or something else was written in its
    place, which `tampered` tells. It comes from untrusted code. `reason` is the supervisor's word:
    the limit that ended the run ("cpu", "idle", "wall", "memory", "killed", "processes", "output"),
    "sandbox" where there was no run, or None; `exit` is the worker's exit code (negative: a
    signal). `output` is the tail of what was printed: untrusted text.
    """

    result: dict[str, Any] | None
    reason: str | None
    exit: int | None
    output: str
    tampered: bool
    isolation: str
    error: str | None = None


def run(job: Job, *, trust: bool = False, limits: Limits | None = None) -> Outcome:
    """Runs `job` behind walls.

    Raises `AuditError` where there are none and `trust` is not given: untrusted code is then not
    run at all.
    """
    isolation = detect()
    if not isolation.contained and not trust:
        raise AuditError(
            f"code is not run: no isolation here ({isolation.detail}); --trust runs it anyway"
        )
    return run_in(isolation, job, limits or Limits())


def attempt(isolation: Isolation) -> str | None:
    """Tries walls on an empty task; None where they stand, else the reason."""
    try:
        outcome = run_in(isolation, Job(task="nothing"), Limits(cpu_seconds=10))
    except OSError as error:
        return str(error)
    if outcome.result is not None and outcome.reason is None:
        return None
    return outcome.error or outcome.output.strip()[-300:] or f"ended with {outcome.exit}"


def run_in(isolation: Isolation, job: Job, limits: Limits) -> Outcome:
    """Runs `job` behind the given walls; for callers that have settled whether that is safe."""
    folder = Path(tempfile.mkdtemp(prefix="niblick-"))
    try:
        pump = _Pump(limits)
        process = _start(isolation, job, limits, folder, pump)
        try:
            pump.drain(process)
        finally:
            _end(process)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return _outcome(pump, isolation)


def stop_all() -> None:
    """Ends every run of this process that is under way, in any thread, and lets no other begin."""
    with _starting:
        _stopped.set()
        running = list(_running)
    for process in running:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)


def _start(
    isolation: Isolation, job: Job, limits: Limits, folder: Path, pump: _Pump
) -> subprocess.Popen[bytes]:
    bare = not isolation.contained
    bundle, files = job.bundle.orders(job.place)
    config = {
        "mode": isolation.kind,
        "change_user": os.geteuid() == 0,
        "root": str(folder),
        "scratch": str(folder),
        "binds": walls.visible_paths(),
        "limits": vars(limits),
        "job": {**job.arguments, "task": job.task, "place": job.place},
        "command": walls.python_command("worker", packages=job.task != "nothing"),
        "environment": walls.environment(str(folder)) if bare else walls.environment(),
        "bundle": bundle,
        "files": files,
        "control": pump.control_end,
        "result": pump.result_end,
    }
    with _starting:
        if _stopped.is_set():
            raise AuditError("interrupted: no code is run any more")
        process = subprocess.Popen(
            walls.python_command("launch", packages=False),
            stdin=subprocess.PIPE,
            stdout=pump.output_end,
            stderr=pump.output_end,
            pass_fds=(bundle, pump.control_end, pump.result_end),
            env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"},
            cwd="/",
            start_new_session=True,
        )
        _running.add(process)
    pump.close_child_ends()
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError), process.stdin:
        process.stdin.write(json.dumps(config).encode())
    return process


def _end(process: subprocess.Popen[bytes]) -> None:
    """Makes sure that nothing of the run is left; the launcher's death takes its namespace with
    it.
    """
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    _running.discard(process)


class _Pump:
    """The three pipes of a run and what came through them, none of it more than its bound."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.result, self.control, self.output = bytearray(), bytearray(), bytearray()
        self.stopped = ""
        self._printed = 0
        self._result_end, self.result_end = os.pipe()
        self._control_end, self.control_end = os.pipe()
        self._output_end, self.output_end = os.pipe()

    def close_child_ends(self) -> None:
        for descriptor in (self.result_end, self.control_end, self.output_end):
            os.close(descriptor)

    def drain(self, process: subprocess.Popen[bytes]) -> None:
        """Reads until the supervisor has reported and the pipes are closed, a bound is broken or
        time is up.
        """
        deadline = time.monotonic() + self.limits.wall_seconds + _GRACE_SECONDS
        with selectors.DefaultSelector() as selector:
            for descriptor, take in (
                (self._result_end, self._take_result),
                (self._control_end, self._take_control),
                (self._output_end, self._take_output),
            ):
                selector.register(descriptor, selectors.EVENT_READ, take)
            while selector.get_map() and not self.stopped:
                if time.monotonic() > deadline:
                    self.stopped = "wall"
                ended = bool(self.control) or process.poll() is not None
                ready = selector.select(0.0 if ended else 0.5)
                if ended and not ready:
                    break
                for key, _ in ready:
                    data = os.read(key.fd, 65536)
                    if data:
                        key.data(data)
                    else:
                        selector.unregister(key.fd)
        for descriptor in (self._result_end, self._control_end, self._output_end):
            os.close(descriptor)

    def _take_result(self, data: bytes) -> None:
        self.result += data
        if len(self.result) > self.limits.result_bytes:
            self.stopped = "output"

    def _take_control(self, data: bytes) -> None:
        self.control += data[:65536]

    def _take_output(self, data: bytes) -> None:
        self._printed += len(data)
        self.output = (self.output + data)[-_KEPT_OUTPUT:]
        if self._printed > self.limits.output_bytes:
            self.stopped = "output"


def _outcome(pump: _Pump, isolation: Isolation) -> Outcome:
    try:
        control = json.loads(bytes(pump.control) or b"{}")
    except ValueError:
        control = {}
    result, tampered = _last_report(bytes(pump.result))
    return Outcome(
        result=result,
        reason=pump.stopped or control.get("reason") or (None if "exit" in control else "sandbox"),
        exit=control.get("exit"),
        output=bytes(pump.output).decode("utf-8", "replace"),
        tampered=tampered,
        isolation=isolation.kind,
        error=control.get("error"),
    )


def _last_report(data: bytes) -> tuple[dict[str, Any] | None, bool]:
    """The last of the numbered reports in `data`, and whether something is there that no worker
    writes. One that is cut short at the end is none.
    """
    last = None
    for number, line in enumerate(data.split(b"\n")[:-1], 1):
        try:
            last = json.loads(line)
        except (ValueError, RecursionError):
            return None, True
        if not isinstance(last, dict) or last.pop("number", None) != number:
            return None, True
    return last, last is None and bool(data)
