"""The edge to the machine: the one module that reads the launcher's environment and chooses
devices.

Guarantees: importing it touches neither torch nor the environment.
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from niblick.errors import NiblickError

LAB = ("torch", "matplotlib")  # top-level packages of the extra


@dataclass(frozen=True)
class World:
    """This process's place among the launcher's: rank, number of processes, rank on this
    machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """True for the one process that writes files and prints."""
        return self.rank == 0


def read_world() -> World:
    """Rank and world size as torchrun sets them; a single process where they are absent."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    values = [os.environ.get(name) for name in names]
    if values[0] is None or values[1] is None:
        return World()
    return World(int(values[0]), int(values[1]), int(values[2] or 0))


def choose_device(world: World) -> str:
    """`cuda:N` for this process where CUDA is at hand, else `cpu`."""
    import torch

    if not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{world.local_rank % torch.cuda.device_count()}"


@contextmanager
def process_group(world: World, device: str) -> Iterator[None]:
    """A default process group for the block, unless there is one process or the caller has made one
    already.
    """
    import torch
    import torch.distributed as dist

    if world.size == 1 or dist.is_initialized():
        yield
        return
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if device.startswith("cuda") else "gloo", rank=world.rank, world_size=world.size
    )
    try:
        yield
    finally:
        dist.destroy_process_group()


def choose_precision(wanted: str, device: str) -> str:
    """`bf16` or `fp32`: "auto" takes bf16 where the device multiplies it in hardware."""
    if wanted != "auto":
        return wanted
    import torch

    if device.startswith("cuda"):
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    return (
        "bf16"
        if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        else "fp32"
    )


def thread_count() -> int:
    """Threads to compute with: OMP_NUM_THREADS, else the processor cores this process may use."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    if wanted.isdecimal() and int(wanted) > 0:
        return int(wanted)
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    cpus, cores = os.sched_getaffinity(0), set()
    for cpu in cpus:  # two hardware threads of a core share its arithmetic
        place = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        cores.add(place.read_text() if place.exists() else str(cpu))
    return len(cores)


def has_lab() -> bool:
    """Whether torch is installed; it is not imported."""
    return find_spec("torch") is not None


def has_gpu() -> bool:
    """Whether a CUDA device is likely to be at hand, told without torch."""
    return Path("/dev/nvidiactl").exists()


@contextmanager
def needs_lab(what: str) -> Iterator[None]:
    """Imports of the lab's packages in the block; `NiblickError` tells how to install them."""
    try:
        yield
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        if name not in LAB:
            raise
        raise NiblickError(lab_message(what, name)) from None


def lab_message(what: str, package: str) -> str:
    """That `what` needs a package of the lab, and the command that installs it."""
    return f"{what} needs {package}, which is not installed; run: pip install 'niblick[lab]'"


def keep_freed_memory() -> bool:
    """Have the C library reuse large freed blocks rather than return them to the system; whether it
    could.

    A training step frees and takes the same blocks again; fresh pages for each cost a tenth of its
    time.
    """
    threshold, trim, largest = -3, -1, 2**31 - 1  # glibc's M_MMAP_THRESHOLD and M_TRIM_THRESHOLD
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    return bool(mallopt(threshold, 1 << 30)) and bool(mallopt(trim, largest))


def return_freed_memory() -> None:
    """Have the C library give what has been freed back to the system, where it can."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError):
        return


def cache_folder() -> Path:
    """Where prepared corpora and measured baselines are kept between runs."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "niblick"


def describe_environment() -> dict[str, Any]:
    """What a run's `environment.json` records: versions, processor and device."""
    import torch

    import niblick

    return {
        "niblick": niblick.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "processor": _processor(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cuda": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
