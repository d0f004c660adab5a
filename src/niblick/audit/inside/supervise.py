"""The trusted process inside the walls: starts the worker, holds it to its limits, and tells how it
ended.

It never loads anything of the submission. In a process namespace it is process 1, which nothing
inside can signal, and its end takes every process inside with it: threads, daemons and orphans
included.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import sys
import tarfile
import time
from typing import Any

from niblick.audit.inside import libc, seccomp
from niblick.audit.inside.walls import NOBODY, SCRATCH

RESULT_FD, JOB_FD = 198, 199
_TICK = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_POLL_SECONDS = 0.02


def supervise(config: dict[str, Any]) -> dict[str, Any]:
    """Unpacks the bundle, runs the worker to its end or to a limit; returns `{reason, status,
    signal, ...}`.
    """
    scratch = SCRATCH if config["mode"] != "bare" else config["scratch"]
    _unpack(config["bundle"], scratch)
    started = time.monotonic()
    worker = _start(config, scratch)
    contained = config["mode"] != "bare"
    reason, status = _watch(worker, config["limits"], started, contained)
    _kill_all(worker, contained)
    if status is None:
        status = os.waitpid(worker, 0)[1]
    code = os.waitstatus_to_exitcode(status)
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = usage.ru_utime + usage.ru_stime >= config["limits"]["cpu_seconds"]
    if reason is None and (code == -signal.SIGXCPU or (code == -signal.SIGKILL and spent)):
        reason = "cpu"
    return {"reason": reason, "exit": code, "seconds": time.monotonic() - started}


def _unpack(bundle: int, scratch: str) -> None:
    """Writes the plain files and folders of the caller's archive, open to the worker, below
    `scratch`.
    """
    with os.fdopen(bundle, "rb") as file, tarfile.open(fileobj=file) as archive:
        for entry in archive:
            path = os.path.join(scratch, entry.name)
            content = archive.extractfile(entry)
            if content is None:
                os.makedirs(path, exist_ok=True)
            else:
                with open(path, "wb") as out:
                    shutil.copyfileobj(content, out)
            os.chmod(path, entry.mode)


def _watch(
    worker: int, limits: dict[str, Any], started: float, contained: bool
) -> tuple[str | None, int | None]:
    """Waits for the worker; returns the limit it broke (or None) and its wait status once it has
    one.
    """
    while True:
        while True:  # orphans of the submission are re-parented to process 1 and reaped here
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return None, None
            if pid == worker:
                return None, status
            if pid == 0:
                break
        reason = _broken(limits, started, contained, worker)
        if reason is not None:
            return reason, None
        time.sleep(_POLL_SECONDS)


def _broken(limits: dict[str, Any], started: float, contained: bool, worker: int) -> str | None:
    """The first limit that the processes inside break together, or None."""
    if time.monotonic() - started > limits["wall_seconds"]:
        return "wall"
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    memory, threads, seconds = 0, 0, usage.ru_utime + usage.ru_stime
    for name in os.listdir("/proc") if os.path.isdir("/proc/self") else ():
        if not name.isdigit() or int(name) == os.getpid():
            continue
        with contextlib.suppress(OSError, IndexError, ValueError):
            with open(f"/proc/{name}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
            if not contained and int(fields[3]) != worker:
                continue
            memory += int(fields[21]) * _PAGE
            threads += int(fields[17])
            seconds += (int(fields[11]) + int(fields[12])) / _TICK
    if memory > limits["memory_bytes"]:
        return "memory"
    if threads > 4 * limits["processes"]:
        return "processes"
    return "cpu" if seconds > 2 * limits["cpu_seconds"] else None


def _kill_all(worker: int, contained: bool) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if contained:
            os.kill(-1, signal.SIGKILL)
        else:
            os.killpg(worker, signal.SIGKILL)


def _start(config: dict[str, Any], scratch: str) -> int:
    """Forks the worker, which takes its limits upon itself and becomes a fresh Python."""
    read_end, write_end = os.pipe()
    worker = os.fork()
    if worker == 0:
        try:
            os.close(write_end)
            _become_worker(config, scratch, read_end)
        finally:
            os._exit(97)
    os.close(read_end)
    os.close(config["result"])
    job = {"nonce": config["nonce"], "folder": scratch, **config["job"]}
    with contextlib.suppress(BrokenPipeError), os.fdopen(write_end, "w") as pipe:
        json.dump(job, pipe)
    return worker


def _become_worker(config: dict[str, Any], scratch: str, job: int) -> None:
    os.setsid()
    os.dup2(job, JOB_FD)
    os.dup2(config["result"], RESULT_FD)
    os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
    os.closerange(3, RESULT_FD)
    os.closerange(JOB_FD + 1, 4096)
    os.chdir(scratch)
    os.umask(0o077)
    _set_limits(config["limits"], contained=config["mode"] != "bare")
    if config["mode"] == "namespaces":
        _give_up_privileges(change_user=config["change_user"])
    if sys.platform == "linux":
        libc.prctl(libc.PR_SET_PDEATHSIG, signal.SIGKILL)
        libc.prctl(libc.PR_SET_NO_NEW_PRIVS, 1)
        program = seccomp.program()
        if program is not None:
            libc.install_filter(program)
    os.execve(config["command"][0], config["command"], config["environment"])


def _give_up_privileges(*, change_user: bool) -> None:
    """Leaves the worker without capabilities, and under an id of its own where the caller was
    root.
    """
    libc.lock_privileges()
    if change_user:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    libc.clear_capabilities()


def _set_limits(limits: dict[str, Any], *, contained: bool) -> None:
    """Limits of one process; `RLIMIT_NPROC` counts inside the namespace only, so bare runs go
    without it.
    """
    wanted = {
        resource.RLIMIT_CPU: limits["cpu_seconds"],
        resource.RLIMIT_AS: limits["address_bytes"],
        resource.RLIMIT_FSIZE: limits["file_bytes"],
        resource.RLIMIT_NOFILE: 256,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 65536,
    }
    if contained:
        wanted[resource.RLIMIT_NPROC] = limits["processes"]
    for which, value in wanted.items():
        hard = resource.getrlimit(which)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        last = (
            value + 2 if which == resource.RLIMIT_CPU and hard == resource.RLIM_INFINITY else value
        )
        with contextlib.suppress(
            ValueError, OSError
        ):  # a processor limit warns by SIGXCPU, then kills
            resource.setrlimit(which, (value, last))
