"""Which build of PyTorch `make setup` installs: the one for the CPU alone is a third of the size.

Prints pip's options for it on standard output, or nothing for the default build, and on standard
error which one it is and why. Needs nothing but Python: it runs before anything is installed.
"""

from __future__ import annotations

import shutil
import sys
import threading
import urllib.request
from pathlib import Path

INDEX = "https://download.pytorch.org/whl/cpu"
SECONDS = 3.0


def has_nvidia_driver(root: Path = Path("/")) -> bool:
    """Whether this machine can be expected to run CUDA."""
    places = ("dev/nvidiactl", "proc/driver/nvidia", "dev/dxg")  # the last is WSL's
    return any((root / place).exists() for place in places) or bool(shutil.which("nvidia-smi"))


def answers(index: str, seconds: float = SECONDS) -> bool:
    """Whether a package index lists torch within `seconds`, looking its name up included."""
    found: list[bool] = []

    def ask() -> None:
        try:
            with urllib.request.urlopen(f"{index}/torch/", timeout=seconds) as reply:
                found.append(b"torch-" in reply.read(1 << 22))
        except (OSError, ValueError):
            found.append(False)

    asking = threading.Thread(target=ask, daemon=True)  # a look-up of names knows no time-out
    asking.start()
    asking.join(seconds)
    return found == [True]


def choose(index: str, *, driver: bool, platform: str, seconds: float = SECONDS) -> tuple[str, str]:
    """(pip's options, what to tell); no options mean the default build."""
    if platform != "linux":
        return "", "PyTorch: the default build, which is this system's"
    if driver:
        return "", "PyTorch: the default build, as there is an NVIDIA driver"
    if answers(index, seconds):
        return f"--index-url {index}", f"PyTorch: the CPU build, from {index}"
    return "", (
        "PyTorch: the default build, with CUDA, though there is no NVIDIA driver: the index of CPU"
        f" builds gave no answer within {seconds:g} seconds"
    )


if __name__ == "__main__":
    options, told = choose(INDEX, driver=has_nvidia_driver(), platform=sys.platform)
    print(told, file=sys.stderr, flush=True)
    print(options, flush=True)
