"""The walls: namespaces of the child's own and a root directory that holds only what Python needs.

The new root is a small read-only tmpfs with read-only binds of the system's libraries and of
Python, scratch folders of bounded size and number of files, and a process table of its own. Nothing
of the user's home, environment or network is inside. Guarantees hold once `build` has returned: it
looks at every mount there is before it does, and any step that fails, or a mount that did not
become read-only, raises `OSError`; nothing has been run by then.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat

from niblick.audit.inside import libc

SCRATCH = "/submission"
NOBODY = 65534
_MOST_FILES = 20_000  # in one scratch folder: every file costs kernel memory, empty ones too
_DEVICES = ("null", "full", "random", "urandom")
_STRICT = libc.MS_NOSUID | libc.MS_NODEV
_WRITABLE = {SCRATCH, "/tmp", "/dev/shm", "/proc", *(f"/dev/{name}" for name in _DEVICES)}


def enter() -> int:
    """Moves the caller into new namespaces and forks; returns 0 in process 1 and its id in the
    caller.
    """
    user, group = os.geteuid(), os.getegid()
    ready, done = os.pipe(), os.pipe()
    writer = os.fork()
    if writer == 0:
        _write_maps(os.getppid(), user, group, ready[0], done[1])
    libc.unshare(libc.NAMESPACES)
    os.write(ready[1], b"1")
    told = os.read(done[0], 1)
    os.waitpid(writer, 0)
    for descriptor in (*ready, *done):
        os.close(descriptor)
    if told != b"1":
        raise OSError("user namespace: its id maps cannot be written")
    return os.fork()


def _write_maps(target: int, user: int, group: int, ready: int, done: int) -> None:
    """In a helper outside the namespace: gives it the id of nobody, for untrusted code.

    That is the caller under another name; where the caller is root, who must not be that, the
    namespace gets a root for the walls and the true nobody for the code.
    """
    libc.prctl(libc.PR_SET_PDEATHSIG, 9)
    verdict = b"0"
    with contextlib.suppress(OSError):
        os.read(ready, 1)
        if user == 0:
            both = f"0 0 1\n{NOBODY} {NOBODY} 1"
            maps = [("uid_map", both), ("gid_map", both.replace("0 0", f"0 {group}"))]
        else:
            maps = [("setgroups", "deny"), ("uid_map", f"{NOBODY} {user} 1")]
            maps.append(("gid_map", f"{NOBODY} {group} 1"))
        for name, text in maps:
            with open(f"/proc/{target}/{name}", "w") as file:
                file.write(text)
        verdict = b"1"
    os.write(done, verdict)
    os._exit(0)


def build(root: str, binds: list[str], scratch_bytes: int) -> None:
    """In process 1: mounts the new root over the directory `root`, fills it and makes it the only
    one.
    """
    libc.mount("none", "/", "", libc.MS_REC | libc.MS_PRIVATE)
    libc.mount("tmpfs", root, "tmpfs", _STRICT, "mode=755,size=4m,nr_inodes=4096")
    for path, size, mode in (
        (SCRATCH, scratch_bytes, "777"),
        ("/tmp", scratch_bytes // 4, "1777"),
        ("/dev/shm", scratch_bytes // 4, "1777"),
    ):
        os.makedirs(root + path, exist_ok=True)
        options = f"mode={mode},size={size},nr_inodes={_MOST_FILES}"
        libc.mount("tmpfs", root + path, "tmpfs", _STRICT, options)
    for path in binds:  # after the scratch mounts: a package may itself lie below /tmp
        _show(root, path)
    for device in _DEVICES:
        _bind(f"/dev/{device}", f"{root}/dev/{device}")
    os.makedirs(f"{root}/etc", exist_ok=True)
    with open(f"{root}/etc/passwd", "w") as file:
        file.write(f"nobody:x:{NOBODY}:{NOBODY}::{SCRATCH}:/bin/sh\n")
    os.makedirs(f"{root}/proc", exist_ok=True)
    libc.mount("proc", f"{root}/proc", "proc", _STRICT | libc.MS_NOEXEC)
    _pivot(root)
    verify()


def _pivot(root: str) -> None:
    os.makedirs(f"{root}/.old")
    libc.pivot_root(root, f"{root}/.old")
    os.chdir("/")
    libc.unmount("/.old")
    os.rmdir("/.old")
    libc.mount("none", "/", "", libc.MS_REMOUNT | libc.MS_RDONLY | _STRICT)


def _show(root: str, path: str) -> None:
    """Makes host path `path` visible read-only at the same place; symbolic links are copied as
    such.
    """
    if not os.path.lexists(path) or os.path.lexists(root + path):
        return
    os.makedirs(os.path.dirname(root + path), exist_ok=True)
    if os.path.islink(path):
        os.symlink(os.readlink(path), root + path)
    else:
        _bind(path, root + path)
        libc.make_read_only(root + path)


def _bind(path: str, target: str) -> None:
    if stat.S_ISDIR(os.stat(path).st_mode):
        os.makedirs(target, exist_ok=True)
    else:
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
    libc.mount(path, target, "", libc.MS_BIND | libc.MS_REC)


def verify() -> None:
    """Raises `OSError` unless every mount is read-only but the scratch folders, devices and
    /proc.
    """
    with open("/proc/self/mountinfo", "rb") as file:
        mounts = [line.split() for line in file]
    for fields in mounts:
        path = re.sub(rb"\\([0-7]{3})", lambda code: bytes([int(code[1], 8)]), fields[4])
        if os.fsdecode(path) not in _WRITABLE and b"ro" not in fields[5].split(b","):
            raise OSError(f"{os.fsdecode(path)} did not become read-only")
    if not mounts:
        raise OSError("the mounts cannot be seen")
