"""How the child process is started: the command line, what it may see, and its environment, by kind
of walls.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from niblick.audit import inside
from niblick.audit.inside.walls import SCRATCH
from niblick.audit.sandbox.limits import Limits

PACKAGE = Path(inside.__file__).resolve().parents[2]
_SYSTEM = (
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/nix/store",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/alternatives",
    "/etc/localtime",
)
_OF_PREFIX = (
    "bin",
    "lib",
    "lib64",
    "libexec",
    "pyvenv.cfg",
)  # a prefix may be somebody's home directory
_BOOT = """
import sys, types
for name, path in (("niblick", {root!r}), ("niblick.audit", {root!r} + "/audit")):
    module = types.ModuleType(name)
    module.__path__ = [path]
    sys.modules[name] = module
from niblick.audit.inside.{entry} import main
main()
"""


def python_command(entry: str, *, packages: bool) -> list[str]:
    """Starts `niblick.audit.inside.<entry>` in a fresh isolated Python, with installed packages or
    without.

    The package's own `__init__` is not run: the child sees only the modules it needs.
    """
    flags = ["-I", "-B", "-u", "-X", "utf8"] + ([] if packages else ["-S"])
    return [sys.executable, *flags, "-c", _BOOT.format(root=str(PACKAGE), entry=entry)]


def visible_paths() -> list[str]:
    """Host paths bound read-only: system libraries, this Python with its packages, and niblick
    itself.
    """
    prefixes = [
        sys.base_prefix,
        sys.prefix,
        sys.exec_prefix,
        str(Path(sys.executable).resolve().parent.parent),
    ]
    wanted = [*_SYSTEM, *(f"{prefix}/{part}" for prefix in prefixes for part in _OF_PREFIX)]
    wanted += [path for path in sys.path if Path(path).name in {"site-packages", "dist-packages"}]
    wanted.append(str(PACKAGE))
    kept: list[str] = []
    for path in (form for item in wanted for form in (item, os.path.realpath(item))):
        if not any(
            path == other or path.startswith(f"{other}/") for other in kept
        ) and os.path.lexists(path):
            kept.append(path)
    return kept


def environment(scratch: str = SCRATCH) -> dict[str, str]:
    """The worker's whole environment: nothing of the caller's own."""
    return {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "HOME": scratch,
        "TMPDIR": "/tmp",
        "LANG": "C.UTF-8",
        "USER": "nobody",
        "LOGNAME": "nobody",
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "TORCHINDUCTOR_CACHE_DIR": "/tmp/inductor",
    }


def bubblewrap_command(program: str, limits: Limits, command: list[str]) -> list[str]:
    """`command` inside bubblewrap's namespaces, with the same view of the machine as walls of our
    own.
    """
    out = [
        program,
        "--unshare-all",
        "--die-with-parent",
        "--as-pid-1",
        "--clearenv",
        "--cap-drop",
        "ALL",
    ]
    out += ["--proc", "/proc", "--dev", "/dev"]
    quarter = str(limits.scratch_bytes // 4)
    for path, size in (
        (SCRATCH, str(limits.scratch_bytes)),
        ("/tmp", quarter),
        ("/dev/shm", quarter),
    ):
        out += ["--size", size, "--tmpfs", path]
    for path in visible_paths():  # after the scratch mounts: a package may itself lie below /tmp
        out += (
            ["--symlink", os.readlink(path), path]
            if os.path.islink(path)
            else ["--ro-bind", path, path]
        )
    out += ["--remount-ro", "/dev", "--remount-ro", "/"]
    return [*out, "--chdir", "/", *command]
