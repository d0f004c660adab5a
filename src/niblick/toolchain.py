"""The C libraries: which build of each fits this processor, found ready or compiled on demand.

A wheel carries builds for its platform's kinds of processors. Where there is none, as in a
checkout, a library is compiled once per source, options and processor and kept in the cache
folder, by the system's compiler or by the `ziglang` package. Nothing is compiled on import. Where
neither can be, or the sources are not at hand (an exported submission has none), there is no
library, and callers use their plain forms.
"""

from __future__ import annotations

import ctypes
import hashlib
import platform
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from niblick.errors import NiblickError
from niblick.files import package_folder
from niblick.runtime import cache_folder

Options = tuple[str, ...]
_POOL = ("pool.c", "pool.h")  # of native/
_NATIVE: tuple[Options, ...] = (("-march=native",), ("-mcpu=native",), ())
SUFFIX = {"win32": ".dll", "darwin": ".dylib"}.get(sys.platform, ".so")
# Of the bits of features.c, in their order: x86-64-v3, x86-64-v4, AVX512-VNNI, AVX512-BF16.
FEATURES = ("v3", "v4", "vnni", "bf16")


class Variant(NamedTuple):
    """A build for processors that have the features it needs: options for gcc and clang, and
    zig's name of the processor.
    """

    name: str
    options: Options
    zig: str
    needs: frozenset[str] = frozenset()

    def options_for(self, compiler: Sequence[str]) -> Options:
        """As `compiler` takes them."""
        return (f"-mcpu={self.zig}",) if "ziglang" in compiler else self.options


_V4 = ("-march=x86-64-v4", "-mavx512vnni")
BASELINE = Variant("baseline", (), "baseline")
AVX2 = Variant("avx2", ("-march=x86-64-v3",), "x86_64_v3", frozenset({"v3"}))
AVX512 = Variant("avx512", _V4, "x86_64_v4+avx512vnni", frozenset({"v3", "v4", "vnni"}))
AVX512_BF16 = Variant(
    "avx512-bf16", (*_V4, "-mavx512bf16"), "x86_64_v4+avx512vnni+avx512bf16", frozenset(FEATURES)
)
VARIANTS = (BASELINE, AVX2, AVX512, AVX512_BF16)  # each faster than those before it
_forced: list[str] = []


@contextmanager
def forced_variant(name: str) -> Iterator[None]:
    """Libraries that are loaded in the block are of variant `name`, or the best below it that
    they have; compiled where the package carries none. For tests and measurements.
    """
    names = [variant.name for variant in VARIANTS]
    if name not in names:
        raise NiblickError(f"variant {name!r} is unknown; there are {', '.join(names)}")
    _forced.append(name)
    try:
        yield
    finally:
        _forced.pop()


def variant_is_forced() -> bool:
    """Whether libraries are held to a variant, which no variant's kernels exceed: those do without
    the matrix tiles that a processor may have beyond AVX512-BF16.
    """
    return bool(_forced)


def choose_variant(variants: Iterable[Variant], features: Iterable[str]) -> Variant:
    """The best of `variants`, which are in rising order, that runs on a processor with
    `features`; baseline runs on all.
    """
    has = frozenset(features)
    return [BASELINE, *(variant for variant in variants if variant.needs <= has)][-1]


@dataclass(frozen=True, kw_only=True)
class CLibrary:
    """C files in a folder of the package and how to compile them.

    `names` are units and the headers they include. A library with `variants` is built for kinds
    of processors, and one compiled here for this very one. A `pooled` library is built with the
    thread pool of native/pool.h.
    """

    name: str
    folder: str
    names: tuple[str, ...]
    flags: Options
    variants: tuple[Variant, ...] = (BASELINE,)
    pooled: bool = False
    compilers: tuple[str, ...] = ("gcc", "cc", "clang", "ziglang")

    @property
    def tuned(self) -> bool:
        """Whether builds belong to kinds of processors."""
        return len(self.variants) > 1

    def prebuilt(self, variant: Variant, suffix: str = SUFFIX) -> Path:
        """Where the package carries a build of these very sources; `OSError` without sources."""
        key = hashlib.sha256(repr((self._sources(), self.flags)).encode()).hexdigest()[:12]
        return (
            package_folder() / "native" / "prebuilt" / f"{self.name}-{variant.name}-{key}{suffix}"
        )

    def path(self) -> Path:
        """Where a library compiled here is kept; `OSError` where a source is not at hand."""
        tuned = _processor() if self.tuned else (platform.machine(), platform.system())
        what = (self._sources(), self.flags, self._tunings(self.compiler() or ()), tuned)
        key = hashlib.sha256(repr(what).encode()).hexdigest()[:24]
        return cache_folder() / "native" / f"{key}{SUFFIX}"

    def load(self) -> ctypes.CDLL | None:
        """The library if it is carried, or has been compiled before, and can be loaded."""
        try:
            path = self._carried() or self.path()
            return ctypes.CDLL(str(path)) if path.exists() else None
        except OSError:
            return None

    def build(self) -> bool:
        """Compile into the cache unless it is there or carried; False where that cannot be
        done.
        """
        import subprocess  # both modules take as long to import as a tokenizer does

        try:
            if self._carried() or self.path().exists():
                return True
            path, compiler = self.path(), self.compiler()
            return compiler is not None and any(
                self.compile(path, compiler, tuning) for tuning in self._tunings(compiler)
            )
        except (OSError, subprocess.SubprocessError):
            return False

    def obtain(self) -> ctypes.CDLL | None:
        """The library, compiled first if need be."""
        return self.load() or (self.load() if self.build() else None)

    def state(self) -> str:
        """Where a build for this processor comes from, in words; "missing" where there is none."""
        try:
            if path := self._carried():
                return f"carried with the package ({path.name.split('-', 1)[1].rsplit('-', 1)[0]})"
            found = "compiled here" if self.path().exists() else None
        except OSError:
            return "missing"
        compiler = self.compiler()
        by = "ziglang" if compiler and "ziglang" in compiler else Path((compiler or ("",))[0]).name
        return found or (f"to be compiled by {by}, once" if compiler else "missing")

    def compiler(self) -> Options | None:
        """The command of the C compiler that would be used."""
        for name in self.compilers:
            if name == "ziglang" and find_spec(name):
                return (sys.executable, "-m", name, "cc")
            if found := shutil.which(name):
                return (found,)
        return None

    def compile(self, target: Path, compiler: Sequence[str], options: Sequence[str]) -> bool:
        """Compile to `target`, which appears whole or not at all; False where the compiler refuses
        `options`.
        """
        import subprocess
        import tempfile

        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(dir=target.parent) as name:
            folder, built = Path(name), Path(name) / f"library{target.suffix}"
            sources = self._sources()
            for file, text in sources.items():
                (folder / file).write_bytes(text)
            units = [str(folder / file) for file in sources if file.endswith(".c")]
            pooled = ("-pthread",) if self.pooled else ()
            command = [
                *compiler, *self.flags, "-w", "-g0", "-shared", "-fPIC", *pooled, *options, *units,
                "-o", str(built), "-lm",
            ]  # fmt: skip
            if subprocess.run(command, check=False, capture_output=True, timeout=300).returncode:
                return False
            built.replace(target)
        return True

    def _chosen(self) -> Variant:
        names = [variant.name for variant in VARIANTS]
        if not _forced:
            return choose_variant(self.variants, processor_features() if self.tuned else ())
        return [v for v in self.variants if names.index(v.name) <= names.index(_forced[-1])][-1]

    def _carried(self) -> Path | None:
        """The carried build that fits, if there is one."""
        path = self.prebuilt(self._chosen())
        return path if path.exists() else None

    def _tunings(self, compiler: Sequence[str]) -> tuple[Options, ...]:
        """Options of a build here, of which the first that the compiler takes is used."""
        if _forced:
            return (self._chosen().options_for(compiler),)
        return _NATIVE if self.tuned else (BASELINE.options_for(compiler),)

    def _sources(self) -> dict[str, bytes]:
        folder, native = package_folder() / self.folder, package_folder() / "native"
        sources = {name: (folder / name).read_bytes() for name in self.names}
        if self.pooled:
            sources |= {name: (native / name).read_bytes() for name in _POOL}
        return sources


PROCESSOR = CLibrary(name="features", folder="native", names=("features.c",), flags=("-O1",))
ENGINE = CLibrary(
    name="engine",
    folder="engine/native",
    names=(
        *("api.c", "attention.c", "forward.c", "members.c", "product.c", "sample.c"),
        *("vector.c", "engine.h"),
    ),
    flags=("-std=gnu11", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"),
    variants=(BASELINE, AVX2, AVX512),
    pooled=True,
    compilers=("clang", "ziglang", "gcc", "cc"),  # with AVX2, gcc's takes twice the time
)
KERNELS = CLibrary(
    name="kernels",
    folder="model/kernels",
    names=(
        "kernels.c",
        "kernels.h",
        "tables.h",
        "sidecar.h",
        "tiles.h",
        "products.h",
        "heads.h",
        "attention.h",
        "head.h",
        "channel.h",
        "maps.h",
        "token_shift.h",
        "optimizer.h",
        "floats.h",
        "floats_attention.h",
        "floats_head.h",
        "floats_maps.h",
        "floats_mixers.h",
        "floats_newton.h",
    ),
    flags=(
        "-std=gnu11",
        "-O3",
        "-fno-math-errno",
        "-fno-trapping-math",
        "-fassociative-math",
        "-fno-signed-zeros",
        "-freciprocal-math",
    ),
    variants=VARIANTS,
    pooled=True,
)  # fmt: skip
# In the codecs, nothing may change a rounding: no contraction, no reordering; and no instruction
# beyond the platform's base.
CODECS = CLibrary(
    name="codecs",
    folder="codecs/native",
    names=("opening.c", "stream.c", "trellis.c"),
    flags=("-std=gnu11", "-O3", "-ffp-contract=off"),
)
ENCODER = CLibrary(
    name="encoder", folder="text/native", names=("bpe.c",), flags=("-std=gnu11", "-O3")
)
LIBRARIES = (PROCESSOR, CODECS, ENCODER, ENGINE, KERNELS)


@cache
def processor_features() -> frozenset[str]:
    """Those of FEATURES that this processor and its system have; none where nothing that asks it
    is carried or compiled.
    """
    library = PROCESSOR.load()
    bits = library.niblick_features() if library else 0
    return frozenset(name for bit, name in enumerate(FEATURES) if bits >> bit & 1)


def _processor() -> Options:
    """What a library tuned to this processor depends on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else [platform.processor()]
    marks = ("model name", "flags", "Features", "CPU part")
    return (
        platform.machine(),
        platform.system(),
        *sorted({line for line in lines if line.startswith(marks)}),
    )
