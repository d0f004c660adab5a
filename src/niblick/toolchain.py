"""Small C libraries compiled on demand: once per source, options and processor, kept in the cache
folder.

Nothing is compiled on import. Where there is no C compiler, it fails, or the sources are not at
hand (an exported submission has none), there is no library, and callers use their plain forms.
"""

from __future__ import annotations

import ctypes
import hashlib
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from niblick.runtime import cache_folder

Tuning = tuple[str, ...]
_ABSENT = (
    OSError,
    AttributeError,
)  # no such file; or modules that come from memory, which have no folder
_POOL = ("pool.c", "pool.h")  # of native/, beside this module
TUNED: tuple[Tuning, ...] = (("-march=native",), ("-mcpu=native",), ())


@dataclass(frozen=True, kw_only=True)
class CLibrary:
    """C files in a package (in its subfolder `folder`, where it has one) and how to compile them.

    `names` are units and the headers they include; `tunings` are further options, of which the
    first that the compiler takes is used. A library with tunings belongs to one kind of processor,
    and its file name says so. A `pooled` library is built with the thread pool of native/pool.h.
    """

    package: str
    folder: str = ""
    names: tuple[str, ...]
    flags: Tuning
    tunings: tuple[Tuning, ...] = ((),)
    pooled: bool = False
    compilers: tuple[str, ...] = ("gcc", "cc", "clang")

    def path(self) -> Path:
        """Where the compiled library is kept; `OSError` where a source is not at hand."""
        tuned = _processor() if self.tunings != ((),) else (platform.machine(), platform.system())
        what = (self._sources(), self.flags, self.tunings, tuned)
        key = hashlib.sha256(repr(what).encode()).hexdigest()[:24]
        return cache_folder() / "native" / f"{key}.so"

    def load(self) -> ctypes.CDLL | None:
        """The library if it has been compiled before and can be loaded."""
        try:
            path = self.path()
            return ctypes.CDLL(str(path)) if path.exists() else None
        except _ABSENT:
            return None

    def build(self) -> bool:
        """Compile into the cache unless it is there; False where that cannot be done."""
        try:
            path, compiler = self.path(), self.compiler()
            if path.exists():
                return True
            return compiler is not None and any(
                self.compile(path, compiler, tuning) for tuning in self.tunings
            )
        except (*_ABSENT, subprocess.SubprocessError):
            return False

    def obtain(self) -> ctypes.CDLL | None:
        """The library, compiled first if need be."""
        return self.load() if self.build() else None

    def compiler(self) -> str | None:
        """The C compiler that would be used."""
        return next((found for found in map(shutil.which, self.compilers) if found), None)

    def compile(self, target: Path, compiler: str, options: Sequence[str]) -> bool:
        """Compile to `target`, which appears whole or not at all; False where the compiler refuses
        `options`.
        """
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(dir=target.parent) as name:
            folder, built = Path(name), Path(name) / "library.so"
            sources = self._sources()
            for file, text in sources.items():
                (folder / file).write_bytes(text)
            units = [str(folder / file) for file in sources if file.endswith(".c")]
            command = [
                compiler,
                *self.flags,
                "-shared",
                "-fPIC",
                *(("-pthread",) if self.pooled else ()),
                *options,
                *units,
                "-o",
                str(built),
                "-lm",
            ]
            if subprocess.run(command, check=False, capture_output=True, timeout=300).returncode:
                return False
            built.replace(target)
        return True

    def _sources(self) -> dict[str, bytes]:
        folder = resources.files(self.package)
        if self.folder:
            folder = folder / self.folder
        sources = {name: (folder / name).read_bytes() for name in self.names}
        if self.pooled:
            native = resources.files("niblick") / "native"
            sources |= {name: (native / name).read_bytes() for name in _POOL}
        return sources


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
