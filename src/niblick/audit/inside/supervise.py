"""The trusted process inside the walls: starts the worker, holds it to its limits, and tells how it
ended.

It never loads anything of the submission. In a process namespace it is process 1, which nothing
inside can signal, and its end takes every process inside with it: threads, daemons and orphans
included. Limits count work, not the clock: what a busy machine holds up is not held against a
script, and doing nothing at all for long is.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import sys
import time
from dataclasses import dataclass
from typing import Any

from niblick.audit.inside import libc, seccomp
from niblick.audit.inside.walls import NOBODY, SCRATCH

RESULT_FD, JOB_FD = 198, 199
_TICK = os.sysconf("SC_CLK_TCK")
_POLL_SECONDS = 0.02
_STARTED_FOR_EACH = 32  # processes that may be started in all, for each that may live at once


def supervise(config: dict[str, Any]) -> dict[str, Any]:
    """Writes the files, runs the worker to its end or to a limit; returns `{reason, exit}`."""
    contained = config["mode"] != "bare"
    scratch = SCRATCH if contained else config["scratch"]
    _unpack(config, scratch)
    if config["change_user"] and not contained:  # the folder is root's until now
        os.chown(scratch, NOBODY, NOBODY)
    worker = _start(config, scratch)
    reason, status = _watch(worker, config["limits"], contained)
    _kill_all(contained)
    if status is None:
        status = os.waitpid(worker, 0)[1]
    code = os.waitstatus_to_exitcode(status)
    if reason is None and code == -signal.SIGKILL:  # by a limit, by itself, or out of memory
        reason = "cpu" if _spent(config["limits"]) else "killed"
    return {"reason": reason, "exit": code}


def _spent(limits: dict[str, Any]) -> bool:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime >= float(limits["cpu_seconds"])


def _unpack(config: dict[str, Any], scratch: str) -> None:
    """Writes the caller's files below `scratch`, open to the worker: (name, offset and length in
    the bundle, size); what a file has beyond its length reads as zeros and takes no space.
    """
    _make_folders(scratch, config["job"]["place"])
    for name, offset, length, size in config["files"]:
        _make_folders(scratch, os.path.dirname(name))
        path = os.path.join(scratch, name)
        with open(path, "wb") as out:
            while length > 0 and (
                piece := os.pread(config["bundle"], min(length, 1 << 20), offset)
            ):
                out.write(piece)
                offset, length = offset + len(piece), length - len(piece)
            out.truncate(size)
        os.chmod(path, 0o666)
    os.close(config["bundle"])


def _make_folders(scratch: str, name: str) -> None:
    for part in filter(None, name.split("/")):
        scratch = os.path.join(scratch, part)
        if not os.path.isdir(scratch):
            os.mkdir(scratch)
            os.chmod(scratch, 0o777)


@dataclass
class _Use:
    """What all processes inside use together: bytes of memory, threads, processor seconds, and
    whether one of them runs or waits for a processor.
    """

    memory: int = 0
    threads: int = 0
    seconds: float = 0.0
    running: bool = False
    started: int = 0


def _watch(worker: int, limits: dict[str, Any], contained: bool) -> tuple[str | None, int | None]:
    """Waits for the worker; returns the limit it broke (or None) and its wait status once it has
    one.
    """
    begun = moved = time.monotonic()
    last = 0.0
    while True:
        while True:  # orphans of the submission are re-parented to this process and reaped here
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return None, None
            if pid == worker:
                return None, status
            if pid == 0:
                break
        use, now = _use(contained), time.monotonic()
        if use.running or use.seconds > last:
            moved, last = now, use.seconds
        if now - begun > limits["wall_seconds"]:
            return "wall", None
        if now - moved > limits["idle_seconds"]:
            return "idle", None
        if use.memory > limits["memory_bytes"]:
            return "memory", None
        if use.seconds > limits["cpu_seconds"]:
            return "cpu", None
        crowded = use.started > _STARTED_FOR_EACH * limits["processes"]
        if crowded or use.threads > 2 * limits["processes"]:
            return "processes", None
        time.sleep(_POLL_SECONDS)


def _use(contained: bool) -> _Use:
    """Counts every process inside: resident and swapped memory and page tables, and processor time
    with that of children already gone.
    """
    gone = resource.getrusage(resource.RUSAGE_CHILDREN)
    use = _Use(seconds=gone.ru_utime + gone.ru_stime)
    inside = {os.getpid()}
    if not _has_proc():  # nothing can be told of living processes
        use.running = True
        return use
    for pid in sorted(map(int, filter(str.isdigit, os.listdir("/proc")))):
        with contextlib.suppress(OSError, IndexError, ValueError):
            with open(f"/proc/{pid}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
            if pid == os.getpid() or (not contained and int(fields[1]) not in inside):
                continue
            inside.add(pid)
            use.running |= fields[0] in b"RD"
            use.threads += int(fields[17])
            use.seconds += sum(map(int, fields[11:15])) / _TICK
            with open(f"/proc/{pid}/status", "rb") as file:
                for line in file:
                    if line.startswith((b"VmRSS:", b"VmSwap:", b"VmPTE:")):
                        use.memory += int(line.split()[1]) * 1024
    if contained:  # the last process id given out in this namespace
        with open("/proc/loadavg", "rb") as file:
            use.started = int(file.read().split()[-1])
    return use


def _has_proc() -> bool:
    return os.path.isdir("/proc/self")


def _kill_all(contained: bool) -> None:
    """Ends every process inside; outside walls, children and the orphans they leave, to the
    last.
    """
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if contained:
            os.kill(-1, signal.SIGKILL)
    while not contained and (children := _children()):
        for pid in children:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(_POLL_SECONDS)


def _children() -> list[int]:
    """Living children of this process, adopted ones too."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")) if _has_proc() else ():
        with contextlib.suppress(OSError, IndexError):
            with open(f"/proc/{name}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
            if int(fields[1]) == os.getpid() and fields[0] != b"Z":
                found.append(int(name))
    return found


def _start(config: dict[str, Any], scratch: str) -> int:
    """Forks the worker, which takes its limits upon itself and becomes a fresh Python; `OSError`
    where it cannot.
    """
    read_end, write_end = os.pipe()
    failed, failing = os.pipe()
    worker = os.fork()
    if worker == 0:
        try:
            os.close(write_end)
            os.dup2(failing, JOB_FD + 1, inheritable=False)
            _become_worker(config, scratch, read_end)
        except BaseException as error:  # noqa: BLE001 - whatever it was, nothing foreign has run
            os.write(JOB_FD + 1, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(97)
    for descriptor in (read_end, config["result"], failing):
        os.close(descriptor)
    place = config["job"].pop("place")
    job = {"folder": f"{scratch}/{place}".rstrip("/"), **config["job"]}
    with contextlib.suppress(BrokenPipeError), os.fdopen(write_end, "w") as pipe:
        json.dump(job, pipe)
    with os.fdopen(failed, "rb") as pipe_end:
        reason = pipe_end.read(2000)
    if reason:
        raise OSError(f"the worker cannot be started: {reason.decode('utf-8', 'replace')}")
    return worker


def _become_worker(config: dict[str, Any], scratch: str, job: int) -> None:
    os.setsid()
    os.dup2(job, JOB_FD)
    os.dup2(config["result"], RESULT_FD)
    os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
    os.closerange(3, RESULT_FD)
    os.closerange(JOB_FD + 2, 4096)
    os.chdir(scratch)
    os.umask(0o077)
    os.nice(10)  # the supervisor goes first, so that limits are looked at in time
    contained = config["mode"] != "bare"
    _set_limits(config["limits"], contained=contained)
    if sys.platform == "linux":  # should the machine itself run out, this goes first
        libc.prctl(libc.PR_SET_DUMPABLE, 1)
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
    _give_up_privileges(contained=contained, change_user=config["change_user"])
    if sys.platform == "linux":
        libc.prctl(libc.PR_SET_PDEATHSIG, signal.SIGKILL)
        libc.prctl(libc.PR_SET_NO_NEW_PRIVS, 1)
        program = seccomp.program()
        if program is not None:
            libc.install_filter(program)
    os.execve(config["command"][0], config["command"], config["environment"])


def _give_up_privileges(*, contained: bool, change_user: bool) -> None:
    """Leaves the worker without capabilities, and never as user 0."""
    if contained:
        libc.lock_privileges()
    if change_user:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    if contained:
        libc.clear_capabilities()
    if os.getuid() == 0 or os.geteuid() == 0:
        raise PermissionError("untrusted code is not run as user 0")


def _set_limits(limits: dict[str, Any], *, contained: bool) -> None:
    """Limits of one process; `RLIMIT_NPROC` counts inside the namespace only, so bare runs go
    without it.
    """
    wanted = {
        resource.RLIMIT_CPU: limits["cpu_seconds"] + 1,
        resource.RLIMIT_AS: limits["address_bytes"],
        resource.RLIMIT_DATA: limits["memory_bytes"],
        resource.RLIMIT_FSIZE: limits["file_bytes"],
        resource.RLIMIT_NOFILE: 256,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 65536,
    }
    if contained:
        wanted |= {resource.RLIMIT_NPROC: limits["processes"], resource.RLIMIT_SIGPENDING: 256}
    for which, value in wanted.items():
        hard = resource.getrlimit(which)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        if sys.platform == "linux":
            resource.setrlimit(which, (value, value))
        else:
            with contextlib.suppress(ValueError, OSError):  # some systems lack some limits
                resource.setrlimit(which, (value, value))
