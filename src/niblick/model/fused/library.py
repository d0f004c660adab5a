"""The kernels' shared library: compiled from kernels.c once per source and processor, kept in the cache folder.

Nothing is compiled on import. Where there is no C compiler, it fails, or the sources are not at hand (an exported
submission has none), there is no library and the model keeps its plain operations.
"""

from __future__ import annotations

import ctypes
import hashlib
import platform
import shutil
import subprocess
import tempfile
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from niblick.runtime import cache_folder

_FLAGS = (
    "-std=gnu11", "-O3", "-fno-math-errno", "-fno-trapping-math", "-fassociative-math", "-fno-signed-zeros",
    "-freciprocal-math", "-shared", "-fPIC",
)
_TUNING = (("-march=native", "-fopenmp"), ("-march=native",), ("-mcpu=native",), ())  # the first that compiles
_COMPILERS = ("gcc", "cc", "clang")
_SUFFIX = {torch.float32: "f32", torch.bfloat16: "bf16"}
# One letter per argument: p pointer, f float, i 64-bit integer; the order is that of kernels.h.
_ARGUMENTS = {
    "mix_norm": "ppppfpppii", "mix_norm_back": "ppppppppfpppii", "add_norm": "pppfpppii",
    "add_norm_back": "ppppppfpppii", "shift": "ppppppiii", "shift_back": "ppppppppiii", "square": "pfpii",
    "square_back": "ppfpii", "gate": "pppii", "gate_back": "pppppii", "nll": "ppfppii", "nll_back": "ppppfpii",
    "heads": "ppppppiiiii", "heads_back": "ppppppppiiiii", "exclude": "pppiiii",
    "exclude_back": "pppppiiii", "softmax": "pppfiii", "softmax_back": "ppfii",
}
_BF16_ONLY = {"attend": "pppppiiiiii", "attend_back": "pppppppppiiiiii"}  # attention.h
_TYPES = {"p": ctypes.c_void_p, "f": ctypes.c_float, "i": ctypes.c_int64}
CHUNKS = 32  # partial sums per reduction, as in kernels.c


class Kernels:
    """The library's functions by name, for tensors of float32 or bfloat16."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._functions: dict[tuple[str, torch.dtype], Any] = {}
        self.attends = bool(library.attends())  # whether the processor has what attention.h needs
        for dtype, suffix in _SUFFIX.items():
            extra = _BF16_ONLY if self.attends and dtype is torch.bfloat16 else {}
            for name, letters in (_ARGUMENTS | extra).items():
                function = getattr(library, f"{name}_{suffix}")
                function.argtypes, function.restype = [_TYPES[letter] for letter in letters], None
                self._functions[name, dtype] = function

    def __call__(self, name: str, dtype: torch.dtype, *arguments: Tensor | float | None) -> None:
        """Call kernel `name`; tensors must be contiguous, on the CPU, and of the types that kernels.h states."""
        self._functions[name, dtype](*(a.data_ptr() if isinstance(a, Tensor) else a for a in arguments))


def load_kernels() -> Kernels | None:
    """The kernels, compiled first if need be; None where that cannot be done."""
    try:
        source = _source()
        key = hashlib.sha256(repr((source, _FLAGS, _processor())).encode()).hexdigest()[:24]
        path = cache_folder() / "kernels" / f"{key}.so"
        if not path.exists() and not _compile(source, path):
            return None
        return Kernels(ctypes.CDLL(str(path)))
    except (OSError, AttributeError, subprocess.SubprocessError):
        return None


def _source() -> dict[str, bytes]:
    folder = resources.files("niblick.model.fused")
    return {name: (folder / name).read_bytes() for name in ("kernels.c", "kernels.h", "attention.h")}


def _compile(source: dict[str, bytes], target: Path) -> bool:
    compiler = next((found for found in map(shutil.which, _COMPILERS) if found), None)
    if compiler is None:
        return False
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        for name, text in source.items():
            (Path(folder) / name).write_bytes(text)
        built = Path(folder) / "kernels.so"
        for tuning in _TUNING:
            command = [compiler, *_FLAGS, *tuning, str(Path(folder) / "kernels.c"), "-o", str(built), "-lm"]
            if subprocess.run(command, check=False, capture_output=True, timeout=300).returncode == 0:
                built.replace(target)
                return True
    return False


def _processor() -> tuple[str, ...]:
    """What a library tuned to this processor depends on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else [platform.processor()]
    marks = ("model name", "flags", "Features", "CPU part")
    return (platform.machine(), platform.system(), *sorted({line for line in lines if line.startswith(marks)}))
