"""Walls without bubblewrap: namespaces of our own and a root directory that holds only what Python
needs.

The new root is a small read-only tmpfs with read-only binds of the system's libraries and of
Python, a scratch tmpfs, and a process table of its own. Nothing of the user's home, environment or
network is inside. Guarantees hold once `build` has returned; any step that fails raises `OSError`,
and nothing has been run by then.
"""

from __future__ import annotations

import contextlib
import os
import stat

from niblick.audit.inside import libc

SCRATCH = "/submission"
NOBODY = 65534
_DEVICES = ("null", "zero", "full", "random", "urandom")
_ATIME_FLAGS = ((1024, 1024), (2048, 2048), (4096, 1 << 21))  # statvfs bit, mount bit


def enter() -> int:
    """Moves the caller into new namespaces and forks; returns 0 in process 1 and its id in the
    caller.
    """
    user, group, privileged = os.geteuid(), os.getegid(), os.geteuid() == 0
    ready, done = os.pipe(), os.pipe()
    writer = os.fork()
    if writer == 0:
        _write_maps(os.getppid(), user, group, privileged, ready, done)
    libc.unshare(libc.NAMESPACES)
    os.write(ready[1], b"1")
    told = os.read(done[0], 1)
    os.waitpid(writer, 0)
    for descriptor in (*ready, *done):
        os.close(descriptor)
    if told != b"1":
        raise OSError("user namespace: its id maps cannot be written")
    return os.fork()


def _write_maps(
    target: int,
    user: int,
    group: int,
    privileged: bool,
    ready: tuple[int, int],
    done: tuple[int, int],
) -> None:
    """In a helper outside the namespace: maps root inside to the caller, and an id for untrusted
    code.
    """
    libc.prctl(libc.PR_SET_PDEATHSIG, 9)
    verdict = b"0"
    with contextlib.suppress(OSError):
        os.read(ready[0], 1)
        extra = f"\n{NOBODY} {NOBODY} 1" if privileged else ""
        maps = [("uid_map", f"0 {user} 1{extra}"), ("gid_map", f"0 {group} 1{extra}")]
        for name, text in maps if privileged else [("setgroups", "deny"), *maps]:
            with open(f"/proc/{target}/{name}", "w") as file:
                file.write(text)
        verdict = b"1"
    os.write(done[1], verdict)
    os._exit(0)


def build(root: str, binds: list[str], scratch_bytes: int) -> None:
    """In process 1: mounts the new root over the directory `root`, fills it and makes it the only
    one.
    """
    libc.mount("none", "/", "", libc.MS_REC | libc.MS_PRIVATE)
    strict = libc.MS_NOSUID | libc.MS_NODEV
    libc.mount("tmpfs", root, "tmpfs", strict, "mode=755,size=4m")
    for path, size, mode in (
        (SCRATCH, scratch_bytes, "777"),
        ("/tmp", scratch_bytes // 4, "1777"),
        ("/dev/shm", scratch_bytes // 4, "1777"),
    ):
        os.makedirs(root + path, exist_ok=True)
        libc.mount("tmpfs", root + path, "tmpfs", strict, f"mode={mode},size={size}")
    for path in binds:  # after the scratch mounts: a package may itself lie below /tmp
        _bind(root, path)
    for device in _DEVICES:
        _bind_node(f"/dev/{device}", f"{root}/dev/{device}", read_only=False)
    os.makedirs(f"{root}/etc", exist_ok=True)
    with open(f"{root}/etc/passwd", "w") as file:
        file.write(
            f"root:x:0:0::{SCRATCH}:/bin/sh\nnobody:x:{NOBODY}:{NOBODY}::{SCRATCH}:/bin/sh\n"
        )
    os.makedirs(f"{root}/proc", exist_ok=True)
    libc.mount("proc", f"{root}/proc", "proc", strict | libc.MS_NOEXEC)
    _pivot(root)


def _pivot(root: str) -> None:
    os.makedirs(f"{root}/.old")
    libc.pivot_root(root, f"{root}/.old")
    os.chdir("/")
    libc.unmount("/.old")
    os.rmdir("/.old")
    libc.mount("none", "/", "", libc.MS_REMOUNT | libc.MS_RDONLY | libc.MS_NOSUID | libc.MS_NODEV)


def _bind(root: str, path: str) -> None:
    """Makes host path `path` visible read-only at the same place; symbolic links are copied as
    such.
    """
    if not os.path.lexists(path) or os.path.lexists(root + path):
        return
    os.makedirs(os.path.dirname(root + path), exist_ok=True)
    if os.path.islink(path):
        os.symlink(os.readlink(path), root + path)
    else:
        _bind_node(path, root + path, read_only=True)


def _bind_node(path: str, target: str, *, read_only: bool) -> None:
    if stat.S_ISDIR(os.stat(path).st_mode):
        os.makedirs(target, exist_ok=True)
    else:
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
    libc.mount(path, target, "", libc.MS_BIND | libc.MS_REC)
    if not read_only:
        return
    for point in _mounts_under(target):
        held = os.statvfs(point).f_flag
        kept = (held & 0x0E) | sum(bit for seen, bit in _ATIME_FLAGS if held & seen)
        flags = libc.MS_REMOUNT | libc.MS_BIND | libc.MS_RDONLY | libc.MS_NOSUID | kept
        libc.mount("none", point, "", flags)


def _mounts_under(target: str) -> list[str]:
    with open("/proc/self/mountinfo") as file:
        points = [line.split()[4].encode().decode("unicode_escape") for line in file]
    return [point for point in points if point == target or point.startswith(target + "/")]
