"""The native libraries as part of a wheel; the rest is in pyproject.toml.

A wheel carries every library of niblick.toolchain, in all variants of its platform: that of this
machine by its C compiler, or by ziglang where it has none; `--config-setting=target=NAME` builds
for another by ziglang, `target=none` carries no libraries, for any platform. An editable install
carries none: a checkout compiles on first use.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.build_py import build_py
from setuptools.command.bdist_wheel import bdist_wheel

sys.path.insert(0, str(Path(__file__).parent / "src"))
from niblick.toolchain import BASELINE, LIBRARIES, SUFFIX, CLibrary, Variant  # noqa: E402

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
