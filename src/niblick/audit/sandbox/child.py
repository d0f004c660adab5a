"""Starts the child, pumps its pipes within bounds, and checks that the one report is the worker's
own.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import io
import json
import os
import secrets
import selectors
import shutil
import signal
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

from niblick.audit.sandbox import orders
from niblick.audit.sandbox.isolation import Isolation, detect
from niblick.audit.sandbox.limits import Limits
from niblick.errors import AuditError

_KEPT_OUTPUT = 32_768
_GRACE_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class Job:
    """One task for the worker, its arguments, and the files it finds in its scratch folder (path:
    content).
    """

    task: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, bytes | Path] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run ended.

    `result` is the worker's report, None where there was none or it was not the worker's. `reason`
    names the limit that ended the run ("cpu", "wall", "memory", "processes", "output", "sandbox")
    or is None; `exit` is the worker's exit code (negative: a signal). `tampered` says that
    something else was written to the result channel. `output` is the tail of what was printed:
    untrusted text.
    """

    result: dict[str, Any] | None
    reason: str | None
    exit: int | None
    seconds: float
    output: str
    output_bytes: int
    tampered: bool
    isolation: str
    error: str | None = None


def run(job: Job, *, trust: bool = False, limits: Limits | None = None) -> Outcome:
    """Runs `job` behind the best walls there are.

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
    limits = Limits(cpu_seconds=10, wall_seconds=20)
    try:
        outcome = run_in(isolation, Job(task="nothing"), limits)
    except OSError as error:
        return str(error)
    if outcome.result is not None:
        return None
    return outcome.error or outcome.output.strip()[-300:] or f"ended with {outcome.exit}"


def run_in(isolation: Isolation, job: Job, limits: Limits) -> Outcome:
    """Runs `job` behind the given walls; for callers that have settled whether that is safe."""
    nonce = secrets.token_hex(32)
    folder = Path(tempfile.mkdtemp(prefix="niblick-"))
    try:
        with tempfile.TemporaryFile() as bundle:
            _write_bundle(bundle, job.files)
            pump = _Pump(limits)
            process = _start(isolation, job, limits, nonce, folder, bundle, pump)
            try:
                pump.drain(process)
            finally:
                _end(process)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return _outcome(pump, nonce, isolation)


def _write_bundle(file: BinaryIO, files: Mapping[str, bytes | Path]) -> None:
    """Packs the scratch folder's first content; everything in it is readable and writable to the
    worker.
    """
    with tarfile.open(fileobj=file, mode="w") as bundle:
        folders = {parent.as_posix() for name in files for parent in Path(name).parents} - {"."}
        for folder in sorted(folders):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o777
            bundle.addfile(entry)
        for name, content in files.items():
            data = content if isinstance(content, bytes) else content.read_bytes()
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o666
            bundle.addfile(entry, io.BytesIO(data))
    file.flush()
    file.seek(0)


def _start(
    isolation: Isolation,
    job: Job,
    limits: Limits,
    nonce: str,
    folder: Path,
    bundle: BinaryIO,
    pump: _Pump,
) -> subprocess.Popen[bytes]:
    command = orders.python_command("launch", packages=False)
    bare = isolation.kind == "bare"
    if isolation.kind == "bubblewrap":
        command = orders.bubblewrap_command(isolation.program, limits, command)
    config = {
        "mode": isolation.kind,
        "change_user": isolation.kind == "namespaces" and os.geteuid() == 0,
        "root": str(folder),
        "scratch": str(folder),
        "binds": orders.visible_paths(),
        "limits": vars(limits),
        "nonce": nonce,
        "job": {**job.arguments, "task": job.task},
        "command": orders.python_command("worker", packages=job.task != "nothing"),
        "environment": orders.environment(str(folder)) if bare else orders.environment(),
        "bundle": bundle.fileno(),
        "control": pump.control_end,
        "result": pump.result_end,
    }
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=pump.output_end,
        stderr=pump.output_end,
        pass_fds=(bundle.fileno(), pump.control_end, pump.result_end),
        env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"},
        cwd="/",
        start_new_session=True,
    )
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


class _Pump:
    """The three pipes of a run and what came through them, none of it more than its bound."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.result, self.control, self.output = bytearray(), bytearray(), bytearray()
        self.output_bytes, self.stopped = 0, ""
        self.seconds = 0.0
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
        started = time.monotonic()
        deadline = started + self.limits.wall_seconds + _GRACE_SECONDS
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
        self.seconds = time.monotonic() - started

    def _take_result(self, data: bytes) -> None:
        self.result += data
        if len(self.result) > self.limits.result_bytes:
            self.stopped = "output"

    def _take_control(self, data: bytes) -> None:
        self.control += data[:65536]

    def _take_output(self, data: bytes) -> None:
        self.output_bytes += len(data)
        self.output = (self.output + data)[-_KEPT_OUTPUT:]
        if self.output_bytes > self.limits.output_bytes:
            self.stopped = "output"


def _outcome(pump: _Pump, nonce: str, isolation: Isolation) -> Outcome:
    try:
        control = json.loads(bytes(pump.control) or b"{}")
    except ValueError:
        control = {}
    result = _unframe(bytes(pump.result), nonce)
    outcome = Outcome(
        result=result,
        reason=pump.stopped or control.get("reason") or (None if "exit" in control else "sandbox"),
        exit=control.get("exit"),
        seconds=pump.seconds,
        output=bytes(pump.output).decode("utf-8", "replace"),
        output_bytes=pump.output_bytes,
        tampered=bool(pump.result) and result is None,
        isolation=isolation.kind,
        error=control.get("error"),
    )
    return outcome if outcome.reason is None else replace(outcome, result=None)


def _unframe(data: bytes, nonce: str) -> dict[str, Any] | None:
    """The one report in `data`, or None unless `data` is exactly one frame keyed with `nonce`."""
    head, _, payload = data.partition(b"\n")
    code = hmac.new(nonce.encode(), payload, hashlib.sha256).hexdigest()
    if not hmac.compare_digest(head, f"NIBLICK {code} {len(payload)}".encode()):
        return None
    try:
        parsed = json.loads(payload)
    except (ValueError, RecursionError):
        return None
    return parsed if isinstance(parsed, dict) else None
