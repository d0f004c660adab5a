"""The native libraries as part of a wheel; the rest is in pyproject.toml.

A wheel carries every library of niblick.toolchain, in all variants of its platform. They
are built by ziglang, whose code is the fastest for AVX2, for this machine or for
`--config-settings=--build-option=--target=NAME`, see docs/platforms.md; by the system's compiler
where ziglang is not installed (`--no-build-isolation`). An editable install carries none: a
checkout compiles on first use.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

sys.path.insert(0, str(Path(__file__).parent / "src"))
from niblick.toolchain import BASELINE, LIBRARIES, SUFFIX

ZIGLANG = "ziglang==0.17.1"
ZIG = (sys.executable, "-m", "ziglang", "cc")


@dataclass(frozen=True)
class Target:
    """A platform that ziglang compiles for."""

    tag: str
    zig: str
    suffix: str
    x86: bool


TARGETS = {
    "linux-x86-64": Target(
        "manylinux_2_17_x86_64.manylinux2014_x86_64", "x86_64-linux-gnu.2.17", ".so", True
    ),
    "linux-aarch64": Target(
        "manylinux_2_17_aarch64.manylinux2014_aarch64", "aarch64-linux-gnu.2.17", ".so", False
    ),
    "macos-arm64": Target("macosx_11_0_arm64", "aarch64-macos.11.0", ".dylib", False),
    "windows-x86-64": Target("win_amd64", "x86_64-windows-gnu", ".dll", True),
}


class BinaryDistribution(Distribution):
    """One whose wheels belong to a platform."""

    def has_ext_modules(self) -> bool:
        return True


class BuildWheel(bdist_wheel):
    """`--target`: one of TARGETS; this machine where it is not given."""

    user_options: ClassVar = [*bdist_wheel.user_options, ("target=", None, ", ".join(TARGETS))]

    def initialize_options(self) -> None:
        super().initialize_options()
        self.target = None

    def finalize_options(self) -> None:
        super().finalize_options()
        if self.target not in (None, *TARGETS):
            sys.exit(f"target {self.target!r} is unknown; there are {', '.join(TARGETS)}")

    def get_tag(self) -> tuple[str, str, str]:
        """The libraries are called through ctypes: any Python 3."""
        return "py3", "none", TARGETS[self.target].tag if self.target else super().get_tag()[2]


class BuildWithLibraries(build_py):
    """The package, and the libraries beside the thread pool's sources."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            folder = Path(self.build_lib) / "niblick" / "native" / "prebuilt"
            shutil.rmtree(folder, ignore_errors=True)  # another target's
            build_libraries(folder, TARGETS.get(self.get_finalized_command("bdist_wheel").target))


def build_libraries(folder: Path, target: Target | None) -> None:
    """Compile every library in every variant of the target into `folder`."""
    here = ZIG if find_spec("ziglang") else LIBRARIES[0].compiler()
    compiler = (*ZIG, "-target", target.zig) if target else here
    if compiler is None:
        print("warning: no C compiler and no ziglang: this wheel has no native libraries")
        return
    suffix = target.suffix if target else SUFFIX
    x86 = target.x86 if target else platform.machine() in ("x86_64", "AMD64")
    jobs = [
        (library, variant, folder / library.prebuilt(variant, suffix).name)
        for library in LIBRARIES
        for variant in (library.variants if x86 else (BASELINE,))
    ]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        done = pool.map(lambda j: j[0].compile(j[2], compiler, j[1].options_for(compiler)), jobs)
        for (library, variant, _), good in zip(jobs, done, strict=True):
            if not good:
                sys.exit(f"{library.name} does not compile for {variant.name} by {compiler}")


setup(
    distclass=BinaryDistribution,
    cmdclass={"build_py": BuildWithLibraries, "bdist_wheel": BuildWheel},
    setup_requires=[ZIGLANG],
)
