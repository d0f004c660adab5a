"""The native engine's shared library: compiled once per source and processor, kept in the cache folder.

Nothing is compiled on import. Without a C compiler, or where compiling fails, there is no library and callers use
the reference engine.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from niblick.runtime import cache_folder

_FLAGS = (
    "-std=gnu11",
    "-O3",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-shared",
    "-fPIC",
    "-pthread",
)
_TUNING = (("-march=native",), ("-mcpu=native",), ())  # the first that the compiler takes
_BUILDER = "niblick-engine-build"
_COMPILERS = ("cc", "gcc", "clang")


def library_path() -> Path:
    """Where the library for this source and this processor is kept."""
    digest = hashlib.sha256()
    for name, text in sorted(_sources().items()):
        digest.update(name.encode() + b"\0" + text)
    digest.update(repr((_FLAGS, _processor())).encode())
    return cache_folder() / "engine" / f"{digest.hexdigest()[:24]}.so"


def load_library() -> ctypes.CDLL | None:
    """The library if it has been built before and can be loaded."""
    path = library_path()
    if not path.exists():
        return None
    try:
        return ctypes.CDLL(str(path))
    except OSError:
        return None


def build_library() -> bool:
    """Compile the library into the cache unless it is there; False where that cannot be done."""
    path = library_path()
    if path.exists():
        return True
    compiler = next((found for found in map(shutil.which, _COMPILERS) if found), None)
    if compiler is None:
        return False
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        return any(compile_library(path, compiler, tuning) for tuning in _TUNING)
    except OSError:
        return False


def build_in_background() -> threading.Thread:
    """Compile beside other work; the process waits for it before it ends, so the next one has the library."""
    thread = threading.Thread(target=build_library, name=_BUILDER)
    thread.start()
    return thread


def is_building() -> bool:
    """Whether a build in the background has not ended yet."""
    return any(thread.name == _BUILDER for thread in threading.enumerate())


def can_build() -> bool:
    """Whether there is a C compiler to try."""
    return any(map(shutil.which, _COMPILERS))


def _processor() -> tuple[str, ...]:
    """What a library tuned to this processor depends on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else [platform.processor()]
    marks = ("model name", "flags", "Features", "CPU part")
    return (
        platform.machine(),
        platform.system(),
        *sorted({line for line in lines if line.startswith(marks)}),
    )


def _sources() -> dict[str, bytes]:
    folder = resources.files("niblick.generation") / "native"
    return {entry.name: entry.read_bytes() for entry in folder.iterdir() if entry.name.endswith((".c", ".h"))}


def compile_library(target: Path, compiler: str, options: Sequence[str]) -> bool:
    """Compile the library to `target` with further options of the compiler's; False where it does not take them.

    `-DNB_PORTABLE` leaves out what is written for one instruction set.
    """
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        for name, text in _sources().items():
            (Path(folder) / name).write_bytes(text)
        units = sorted(str(path) for path in Path(folder).glob("*.c"))
        built = Path(folder) / "engine.so"
        command = [compiler, *_FLAGS, *options, *units, "-o", str(built), "-lm"]
        if subprocess.run(command, check=False, capture_output=True, timeout=300).returncode:
            return False
        os.replace(built, target)
        return True
