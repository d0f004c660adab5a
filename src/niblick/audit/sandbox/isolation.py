"""What isolation this machine really offers, found by trying it on a program of our own; what a run
may use and see; and the command line of the child.
"""

from __future__ import annotations

import functools
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from niblick.audit import inside
from niblick.audit.inside.walls import SCRATCH

PACKAGE = Path(inside.__file__).resolve().parents[2]
_SYSTEM = "/usr /bin /sbin /lib /lib32 /lib64 /libx32 /nix/store /etc/ld.so.cache /etc/ld.so.conf"
_SYSTEM += " /etc/ld.so.conf.d /etc/alternatives /etc/localtime"
_OF_PREFIX = ("bin", "lib", "lib64", "libexec", "pyvenv.cfg")  # a prefix may be somebody's home
_BOOT = """
import sys, types
for name, path in (("niblick", {root!r}), ("niblick.audit", {root!r} + "/audit")):
    module = types.ModuleType(name)
    module.__path__ = [path]
    sys.modules[name] = module
from niblick.audit.inside.{entry} import main
main()
"""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of one run, of all its processes together where nothing else is said.

    `cpu_seconds` is processor time and `memory_bytes` resident memory with page tables and swap;
    one process may have as much private memory, and `address_bytes` of addresses. `idle_seconds` is
    how long all may wait for nothing; `wall_seconds` only keeps a run from lasting for ever on a
    crowded machine. `processes` bounds those alive, threads counted. `output_bytes` bounds standard
    output and error, `result_bytes` the report.
    """

    cpu_seconds: int = 120
    idle_seconds: float = 30.0
    wall_seconds: float = 3600.0
    memory_bytes: int = 4_000_000_000
    address_bytes: int = 16_000_000_000
    file_bytes: int = 256_000_000
    scratch_bytes: int = 512_000_000
    processes: int = 64
    output_bytes: int = 16_000_000
    result_bytes: int = 4_000_000


@dataclass(frozen=True, kw_only=True)
class Isolation:
    """`kind` is "namespaces" or "bare"; `detail` says why not better."""

    kind: str
    detail: str = ""

    @property
    def contained(self) -> bool:
        """Whether untrusted code may run without the user's word for it."""
        return self.kind == "namespaces"


@functools.cache
def detect() -> Isolation:
    """The walls of `niblick.audit.inside.walls` where they stand here, else none."""
    from niblick.audit.sandbox.child import attempt

    if sys.platform != "linux":
        return Isolation(kind="bare", detail=f"{sys.platform} has no namespaces")
    walls = Isolation(kind="namespaces")
    error = attempt(walls)
    return walls if error is None else Isolation(kind="bare", detail=f"namespaces: {error}")


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
    prefixes = [sys.base_prefix, sys.prefix, sys.exec_prefix]
    prefixes.append(str(Path(sys.executable).resolve().parent.parent))
    wanted = [*_SYSTEM.split(), *(f"{prefix}/{part}" for prefix in prefixes for part in _OF_PREFIX)]
    wanted += [path for path in sys.path if Path(path).name in {"site-packages", "dist-packages"}]
    kept: list[str] = []
    for path in (
        form for item in (*wanted, str(PACKAGE)) for form in (item, os.path.realpath(item))
    ):
        held = any(path == other or path.startswith(f"{other}/") for other in kept)
        if not held and os.path.lexists(path):
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
