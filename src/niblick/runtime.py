"""The edge to the machine: the one module that reads the environment, sets what libraries take from
it, and chooses devices and numbers of threads.

Guarantees: importing it touches neither torch nor the environment.
"""

from __future__ import annotations

import math
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from importlib.util import find_spec
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Any

from niblick.errors import NiblickError
from niblick.limits import MAX_THREADS, quoted

# How long threads of OpenMP and of OpenBLAS (as a power of two of processor cycles, 2^26 by
# default) spin for the next call before they sleep. Read when the libraries are loaded.
WAIT_POLICY = {"OMP_WAIT_POLICY": "PASSIVE", "OPENBLAS_THREAD_TIMEOUT": "16"}
_WAIT_CHOICES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")
_told: list[str] = []  # what has been said once
DEVICES = "cpu, cuda, cuda:N, mps, auto"
# Longer than anything that one process does while the others wait: packing, preparing data.
PATIENCE_HOURS = 24


@dataclass(frozen=True)
class World:
    """This process's place among the launcher's: rank, number of processes, rank on this
    machine; and the `device` that the user asked for, None for the best one.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    device: str | None = None

    @property
    def is_main(self) -> bool:
        """True for the one process that writes files and prints."""
        return self.rank == 0


def read_world(device: str | None = None) -> World:
    """Rank and world size as torchrun sets them; a single process where they are absent, and
    `NiblickError` where they are no such numbers.

    `device` is what the user asked for (see `choose_device`).
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    values = [os.environ.get(name) for name in names]
    if values[0] is None or values[1] is None:
        return World(device=device)
    try:
        rank, size, local = int(values[0]), int(values[1]), int(values[2] or 0)
    except ValueError:
        rank, size, local = -1, 0, 0
    if not 0 <= rank < size or local < 0:
        told = ", ".join(f"{name}={value}" for name, value in zip(names, values, strict=True))
        raise NiblickError(f"{told} in the environment: no numbers of one launch's processes")
    return World(rank, size, local, device)


def choose_device(world: World) -> str:
    """Where this process computes: `cpu`, `cuda:N` or `mps`.

    "auto", or nothing asked for, takes CUDA where it is at hand, else the CPU; "cuda" gives each
    process of a machine its own device. `NiblickError` for a device that is not there.
    """
    import torch

    asked = world.device or "auto"
    kind, _, number = asked.partition(":")
    if kind not in ("auto", "cpu", "cuda", "mps") or (number and kind != "cuda"):
        raise NiblickError(f"device {quoted(asked)} is unknown; accepted: {DEVICES}")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise NiblickError("there is no mps device here; use --device cpu")
    if kind in ("cpu", "mps"):
        return kind
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "auto" and not count:
        return "cpu"
    if not count:
        build = "" if torch.version.cuda else ", a build without CUDA"
        raise NiblickError(
            f"there is no CUDA device here (torch {torch.__version__}{build}); use --device cpu"
        )
    return f"cuda:{_cuda_index(asked, number, count, world)}"


def _cuda_index(asked: str, number: str, count: int, world: World) -> int:
    """Of `count` devices, the one asked for, or this process's own."""
    if ":" not in asked:
        return world.local_rank % count
    if not number.isdecimal():
        raise NiblickError(f"device {quoted(asked)} is unknown; accepted: {DEVICES}")
    if int(number) >= count:
        raise NiblickError(
            f"there is no {asked} here: the CUDA devices are cuda:0 to cuda:{count - 1}"
        )
    if world.size > 1:
        raise NiblickError(
            f"--device {asked} with {world.size} processes: give cuda, and each takes its own"
        )
    return int(number)


def available_processors(root: Path = Path("/")) -> int:
    """Processors that this process may use: those it may run on, or fewer where its control group
    has a quota (versions 1 and 2; part of one counts as one). `root` is where /proc is.
    """
    allowed = getattr(os, "sched_getaffinity", None)
    count = len(allowed(0)) if allowed else os.cpu_count() or 1
    return max(1, min([count, *(math.ceil(quota) for quota in _quotas(root))]))


def _quotas(root: Path) -> Iterator[float]:
    """The quotas, in processors, of this process's control groups and of those they are in."""
    for folder, second in _group_folders(root, "cpu"):
        names = ("cpu.max",) if second else ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        numbers = " ".join(text for name in names for text in _lines(folder / name)).split()
        if len(numbers) == 2 and all(n.isdecimal() and int(n) for n in numbers):
            yield int(numbers[0]) / int(numbers[1])


def available_memory(root: Path = Path("/")) -> int | None:
    """Bytes that this process may still take: what the system has left, or less where its control
    groups have a limit; None where the system does not tell.
    """
    found = []
    for line in _lines(root / "proc/meminfo"):
        if line.startswith("MemAvailable:"):
            found.append(int(line.split()[1]) * 1024)
    for folder, second in _group_folders(root, "memory"):
        names = ("memory.max", "memory.current")
        if not second:
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
        limit, used = (" ".join(_lines(folder / name)) for name in names)
        if limit.isdecimal() and used.isdecimal():
            found.append(max(0, int(limit) - int(used)))
    return min(found, default=None)


def _group_folders(root: Path, controller: str) -> Iterator[tuple[Path, bool]]:
    """Folders of this process's control groups and of those they are in; whether of version 2."""
    for line in _lines(root / "proc/self/mountinfo"):
        before, _, after = line.partition(" - ")
        mount, system = before.split(), after.split()
        if len(mount) < 5 or len(system) < 3 or system[0] not in ("cgroup", "cgroup2"):
            continue
        second = system[0] == "cgroup2"
        if not second and controller not in system[2].split(","):
            continue
        group = _group(root, second, controller, inside=mount[3])
        for each in (group, *group.parents):
            yield root / mount[4].lstrip("/") / each, second


def _group(root: Path, second: bool, controller: str, *, inside: str) -> PurePosixPath:
    """This process's control group, relative to a hierarchy that is mounted from `inside` of it."""
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if (controllers == "") if second else (controller in controllers.split(",")):
            group = PurePosixPath(path)
            within = group.relative_to(inside) if group.is_relative_to(inside) else group
            return PurePosixPath(str(within).lstrip("/"))
    return PurePosixPath()


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text("utf-8", errors="replace").splitlines()
    except OSError:
        return []


def prepare_threads() -> None:
    """Before torch and numpy are loaded: have their threads sleep while they wait, and no more of
    them than there are processors. What the user has set stays; once torch is loaded, this does
    nothing.
    """
    if "torch" in sys.modules:
        return
    if not any(name in os.environ for name in _WAIT_CHOICES):
        os.environ["OMP_WAIT_POLICY"] = WAIT_POLICY["OMP_WAIT_POLICY"]
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", WAIT_POLICY["OPENBLAS_THREAD_TIMEOUT"])
    processors = available_processors()
    if "OMP_NUM_THREADS" not in os.environ and processors < (os.cpu_count() or 1):
        os.environ["OMP_NUM_THREADS"] = str(processors)


def settle_threads(wanted: int | None = None) -> None:
    """Before long work: torch uses `wanted` threads, or no more than there are processors where
    neither the caller nor the user says how many. Warns, once, where threads of torch spin.
    """
    import torch

    if wanted is not None:
        if not 1 <= wanted <= MAX_THREADS:
            raise NiblickError(f"threads {wanted}: accepted are 1 to {MAX_THREADS:,}")
        torch.set_num_threads(wanted)
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(torch.get_num_threads(), available_processors()))
    spins = not any(name in os.environ for name in _WAIT_CHOICES)
    if spins and torch.get_num_threads() > 1 and not _told:
        _told.append("spins")
        warnings.warn(
            "torch was loaded before niblick, and its threads spin while they wait, which is slow"
            " beside other work: set OMP_WAIT_POLICY=passive before Python starts, or import"
            " niblick first",
            RuntimeWarning,
            stacklevel=3,
        )


@contextmanager
def process_group(world: World, device: str) -> Iterator[None]:
    """A default process group for the block, unless there is one process or the caller has made one
    already.
    """
    import torch
    import torch.distributed as dist

    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    if world.size == 1 or dist.is_initialized():
        yield
        return
    # Its functions take the default group of the moment as default arguments. Imported within the
    # block they would keep the group, whose threads may then abort the process as it ends.
    import torch.distributed.nn

    dist.init_process_group(
        "nccl" if device.startswith("cuda") else "gloo",
        rank=world.rank,
        world_size=world.size,
        timeout=timedelta(hours=PATIENCE_HOURS),
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
        hardware = torch.cuda.is_bf16_supported(including_emulation=False)
        return "bf16" if hardware else "fp32"
    if device != "cpu":
        return "fp32"
    return (
        "bf16"
        if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        else "fp32"
    )


def thread_count() -> int:
    """Threads to compute with: OMP_NUM_THREADS, else one for each core that may be used."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    if wanted.isdecimal() and int(wanted) > 0:
        return int(wanted)
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else ()
    place = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    cores = {tuple(_lines(Path(place.format(cpu)))) or cpu for cpu in allowed}
    return min(len(cores) or available_processors(), available_processors())


def has_lab() -> bool:
    """Whether torch is installed; it is not imported."""
    return find_spec("torch") is not None


def has_gpu() -> bool:
    """Whether a CUDA device is likely to be at hand, told without torch."""
    return Path("/dev/nvidiactl").exists()


def visible_gpus(devices: Path = Path("/dev")) -> tuple[str, ...]:
    """The GPUs that a process may use, as CUDA_VISIBLE_DEVICES names them, told without torch."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        names = [name.strip() for name in chosen.split(",")]
        return tuple(takewhile(lambda name: name not in ("", "-1"), names))
    found = (path.name.removeprefix("nvidia") for path in devices.glob("nvidia[0-9]*"))
    return tuple(str(n) for n in range(sum(name.isdecimal() for name in found)))


def environment_of(gpu: str | None) -> dict[str, str] | None:
    """The environment of a process that is to use `gpu` alone; None to leave it as it is."""
    return None if gpu is None else {**os.environ, "CUDA_VISIBLE_DEVICES": gpu}


STARTER = "NIBLICK_STARTER"  # of a run that another process started: that one's number


def is_orphan() -> bool:
    """Whether what started this process is gone; False from the second time on."""
    return os.environ.pop(STARTER, str(os.getppid())) != str(os.getppid())


def keep_freed_memory() -> bool:
    """Have the C library reuse large freed blocks rather than return them to the system; whether it
    could.

    A training step frees and takes the same blocks again; fresh pages for each cost a tenth of its
    time.
    """
    import ctypes

    threshold, trim, largest = -3, -1, 2**31 - 1  # glibc's M_MMAP_THRESHOLD and M_TRIM_THRESHOLD
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # TypeError: Windows has no such library
        return False
    return bool(mallopt(threshold, 1 << 30)) and bool(mallopt(trim, largest))


def return_freed_memory() -> None:
    """Have the C library give what has been freed back to the system, where it can."""
    import ctypes

    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):  # TypeError: Windows has no such library
        return


def memory_in_use(device: str) -> dict[str, int]:
    """`resident_bytes` of this process, where the system tells, and on CUDA `gpu_peak_bytes`: the
    most that tensors have taken on `device`.
    """
    found = {}
    pages = " ".join(_lines(Path("/proc/self/statm"))).split()
    if len(pages) > 1:
        found["resident_bytes"] = int(pages[1]) * os.sysconf("SC_PAGE_SIZE")
    if device.startswith("cuda"):
        import torch

        found["gpu_peak_bytes"] = torch.cuda.max_memory_allocated(device)
    return found


def wandb_mode() -> str:
    """Where Weights & Biases sends what it is told: nowhere, unless the user's WANDB_MODE says."""
    return os.environ.get("WANDB_MODE") or "offline"


def cache_folder() -> Path:
    """Where prepared corpora and measured baselines are kept between runs."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "niblick"


def describe_environment() -> dict[str, Any]:
    """What a run's `environment.json` records: versions, processor and device."""
    import platform

    import torch

    import niblick

    return {
        "niblick": niblick.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "processor": processor_name(),
        "cpus": os.cpu_count(),
        "available_cpus": available_processors(),
        "threads": torch.get_num_threads(),
        "cuda": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def processor_name() -> str:
    """What the system calls the processor."""
    import platform

    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
