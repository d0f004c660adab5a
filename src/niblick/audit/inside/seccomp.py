"""A system-call filter: refuses what no training script needs and a sandbox must not give.

The filter denies by number, so that unknown harmless calls still work; namespaces and limits carry
the rest. What would hold kernel memory that no limit counts is denied too: sockets and their
buffers, anonymous memory shared between processes, System V objects. Denied calls fail with EPERM,
`clone3` with ENOSYS, for which the C library falls back to `clone`, whose flags can be read. Known
for x86_64 and aarch64; `program` returns None elsewhere.
"""

from __future__ import annotations

import os
import struct

_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_EPERM, _ENOSYS = 1, 38
_LOAD, _AND, _JUMP_EQUAL, _JUMP_GE, _JUMP_SET, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCH, _ARG0, _ARG3 = 0, 4, 16, 40
_NEW_NAMESPACES = 0x7E020080  # CLONE_NEWNS, CGROUP, UTS, IPC, USER, PID, NET and TIME
_SHARED_ANONYMOUS = 0x21  # MAP_SHARED with MAP_ANONYMOUS
_X32_BIT = 0x40000000

# call, its number on x86_64 and on aarch64; - where the architecture has no such call
_DENIED = """
ptrace 101 117, process_vm_readv 310 270, process_vm_writev 311 271, kcmp 312 272,
pidfd_open 434 434, pidfd_getfd 438 438, mount 165 40, umount2 166 39, pivot_root 155 41,
chroot 161 51, unshare 272 97, setns 308 268, open_tree 428 428, move_mount 429 429,
fsopen 430 430, fsconfig 431 431, fsmount 432 432, fspick 433 433, mount_setattr 442 442,
bpf 321 280, perf_event_open 298 241, add_key 248 217, request_key 249 218, keyctl 250 219,
userfaultfd 323 282, io_uring_setup 425 425, io_uring_enter 426 426, io_uring_register 427 427,
open_by_handle_at 304 265, name_to_handle_at 303 264, init_module 175 105, finit_module 313 273,
delete_module 176 106, kexec_load 246 104, kexec_file_load 320 294, reboot 169 142,
swapon 167 224, swapoff 168 225, acct 163 89, quotactl 179 60, syslog 103 116,
personality 135 92, memfd_create 319 279, memfd_secret 447 447, shmget 29 194, msgget 68 186,
semget 64 190, mq_open 240 180, sethostname 170 161, settimeofday 164 170, clock_settime 227 112,
adjtimex 159 171, mknod 133 -, mknodat 259 33, fanotify_init 300 262, lookup_dcookie 212 18,
iopl 172 -, ioperm 173 -, modify_ldt 154 -, vhangup 153 58, socket 41 198, socketpair 53 199,
inotify_init 253 -, inotify_init1 294 26, vmsplice 278 75, setpriority 141 140, ioprio_set 251 30
"""
_ARCHITECTURES = {"x86_64": (1, 0xC000003E), "aarch64": (2, 0xC00000B7)}
_CLONE, _CLONE3, _MMAP = (56, 220), (435, 435), (9, 222)
# prlimit and the setters of schedulers, their parameters and processors: for the caller itself only
_OF_ITSELF = ((302, 261), (144, 119), (142, 118), (314, 274), (203, 122))


def _op(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("HBBI", code, if_true, if_false, value)


def _refuse(errno: int) -> bytes:
    return _op(_RETURN, _ERRNO | errno)


def _guarded(number: int, test: bytes, *, offset: int = _ARG0) -> bytes:
    """Refuses call `number` where `test` (which skips one on success) lets the refusal stand."""
    body = _op(_LOAD, offset) + test + _refuse(_EPERM) + _op(_RETURN, _ALLOW)
    return _op(_JUMP_EQUAL, number, 0, len(body) // 8) + body


def program() -> bytes | None:
    """The filter for this machine's architecture as packed instructions, or None where it is not
    known.
    """
    known = _ARCHITECTURES.get(os.uname().machine)
    if known is None:
        return None
    column, arch = known
    code = _op(_LOAD, _ARCH) + _op(_JUMP_EQUAL, arch, 1, 0) + _refuse(_EPERM) + _op(_LOAD, _NUMBER)
    if arch == _ARCHITECTURES["x86_64"][1]:
        code += _op(_JUMP_GE, _X32_BIT, 0, 1) + _refuse(_ENOSYS)
    for entry in _DENIED.split(","):
        number = entry.split()[column]
        if number != "-":
            code += _op(_JUMP_EQUAL, int(number), 0, 1) + _refuse(_EPERM)
    code += _op(_JUMP_EQUAL, _CLONE3[column - 1], 0, 1) + _refuse(_ENOSYS)
    code += _guarded(_CLONE[column - 1], _op(_JUMP_SET, _NEW_NAMESPACES, 0, 1))
    for numbers in _OF_ITSELF:
        code += _guarded(numbers[column - 1], _op(_JUMP_EQUAL, 0, 1, 0))
    both = _op(_AND, _SHARED_ANONYMOUS) + _op(_JUMP_EQUAL, _SHARED_ANONYMOUS, 0, 1)
    code += _guarded(_MMAP[column - 1], both, offset=_ARG3)
    return code + _op(_RETURN, _ALLOW)
