"""The few C library calls the sandbox needs, by ctypes: namespaces, mounts and process controls of
Linux.

Every wrapper raises `OSError` with the call's name and the kernel's reason; none of them is used
outside the child process.
"""

from __future__ import annotations

import ctypes
import os
import struct

# mount, process, network, inter-process, host name and user namespaces
NAMESPACES = 0x00020000 | 0x20000000 | 0x40000000 | 0x08000000 | 0x04000000 | 0x10000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 1, 2, 4, 8, 32
MS_BIND, MS_REC, MS_PRIVATE = 4096, 16384, 1 << 18
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS, PR_SET_CHILD_SUBREAPER = 1, 4, 38, 36
_PR_SET_SECCOMP, _PR_CAPBSET_DROP, _PR_SET_SECUREBITS = 22, 24, 28
_SECUREBITS_NO_ROOT_LOCKED = 0x0F  # root's powers, and their return at setuid, off and locked
_CAPABILITY_VERSION_3 = 0x20080522
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_MOUNT_SETATTR, _AT_FDCWD, _AT_RECURSIVE = 442, -100, 0x8000
_MNT_DETACH = 2

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def unshare(flags: int) -> None:
    """Gives the calling process namespaces of its own."""
    _check(_libc.unshare(flags), "unshare")


def mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    """Mounts or remounts; see mount(2)."""
    places = os.fsencode(source), os.fsencode(target), kind.encode()
    result = _libc.mount(*places, ctypes.c_ulong(flags), data.encode() or None)
    _check(result, f"mount {target}")


def make_read_only(target: str) -> None:
    """Makes a mount and all mounts below it read-only, without set-user-id and device files."""
    attributes = struct.pack("QQQQ", MS_RDONLY | MS_NOSUID | MS_NODEV, 0, 0, 0)
    result = _libc.syscall(
        _MOUNT_SETATTR, _AT_FDCWD, os.fsencode(target), _AT_RECURSIVE, attributes, len(attributes)
    )
    _check(result, f"mount_setattr {target}")


def unmount(target: str) -> None:
    """Detaches a mount, now and lazily."""
    _check(_libc.umount2(os.fsencode(target), _MNT_DETACH), f"umount {target}")


def pivot_root(new: str, old: str) -> None:
    """Makes `new` the root and puts the former root at `old`."""
    number = _PIVOT_ROOT.get(os.uname().machine)
    if number is None:
        raise OSError(f"pivot_root: not known for {os.uname().machine}")
    _check(_libc.syscall(number, os.fsencode(new), os.fsencode(old)), "pivot_root")


def prctl(option: int, argument: int) -> None:
    """prctl(2) with one argument."""
    zero = ctypes.c_ulong(0)
    _check(_libc.prctl(option, ctypes.c_ulong(argument), zero, zero, zero), f"prctl {option}")


def install_filter(program: bytes) -> None:
    """Installs a seccomp filter given as packed BPF instructions of 8 bytes each."""
    buffer = ctypes.create_string_buffer(program, len(program))
    head = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(buffer))
    holder = ctypes.create_string_buffer(head, len(head))
    zero = ctypes.c_ulong(0)
    _check(_libc.prctl(_PR_SET_SECCOMP, 2, ctypes.byref(holder), zero, zero), "seccomp")


def lock_privileges() -> None:
    """Makes user id 0 powerless and keeps capabilities from coming back; held ones stay until
    cleared.
    """
    prctl(_PR_SET_SECUREBITS, _SECUREBITS_NO_ROOT_LOCKED)
    for capability in range(64):
        if _libc.prctl(_PR_CAPBSET_DROP, ctypes.c_ulong(capability), 0, 0, 0) != 0:
            break


def clear_capabilities() -> None:
    """Empties the effective, permitted and inheritable sets."""
    header = struct.pack("Ii", _CAPABILITY_VERSION_3, 0)
    _check(_libc.capset(header, bytes(24)), "capset")
