"""How many rows of a batch one pass takes: as many as fit in memory, by measuring a small pass.

Gradients are the same to rounding for every choice. Running out of memory is told apart from all
else that fails.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from niblick.errors import CapacityError
from niblick.runtime import available_memory, return_freed_memory

SAFE = 0.9  # of the free memory: allocators lose some to fragments
SMALL = 16384  # tokens: of any device; a longer pass leaves a processor's caches, gaining nothing
_SIGNS = (
    "out of memory", "can't allocate memory", "not enough memory", "cublas_status_alloc_failed",
)  # fmt: skip


class Memory(Protocol):
    """A device's memory as the choice of a micro-batch sees it."""

    def free(self) -> int | None:
        """Bytes that may still be taken; None where nobody tells."""
        ...

    def peak(self, work: Callable[[], None]) -> int | None:
        """The most bytes that `work` takes at a time; None where it cannot be measured."""
        ...


class CudaMemory:
    """That of one CUDA device, by torch's allocator."""

    def __init__(self, device: str) -> None:
        self._device, self._new = device, True

    def free(self) -> int | None:
        """See `Memory.free`."""
        free, _ = torch.cuda.mem_get_info(self._device)
        cached = torch.cuda.memory_reserved(self._device)
        return free + cached - torch.cuda.memory_allocated(self._device)

    def peak(self, work: Callable[[], None]) -> int | None:
        """See `Memory.peak`."""
        if self._new:  # libraries take their own on first use
            work()
            self._new = False
        torch.cuda.reset_peak_memory_stats(self._device)
        before = torch.cuda.memory_allocated(self._device)
        work()
        return torch.cuda.max_memory_allocated(self._device) - before


class ProcessMemory:
    """That of this process, by what Linux says of its resident pages."""

    def free(self) -> int | None:
        """See `Memory.free`."""
        return available_memory()

    def peak(self, work: Callable[[], None]) -> int | None:
        """See `Memory.peak`."""
        return_freed_memory()
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
        before = _resident("VmRSS")
        work()
        highest = _resident("VmHWM")
        return None if before is None or highest is None else max(0, highest - before)


def _resident(key: str) -> int | None:
    try:
        found = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def device_memory(device: str) -> Memory:
    """The memory of a device."""
    return CudaMemory(device) if device.startswith("cuda") else ProcessMemory()


@dataclass(frozen=True)
class Choice:
    """Rows of one pass, why so many, and what was measured, in bytes."""

    rows: int
    reason: str  # "recipe", "whole batch", "measured" or "kept"
    free_bytes: int | None = None
    row_bytes: int | None = None  # that one more row takes

    def record(self, length: int, device: str) -> dict[str, Any]:
        """What `environment.json` keeps of it."""
        found = {"tokens": self.rows * length, "chosen": self.reason, "device": device}
        measured = {"free_bytes": self.free_bytes, "row_bytes": self.row_bytes}
        return found | {key: value for key, value in measured.items() if value is not None}


def choose_rows(
    rows: int,
    run: Callable[[int], None],
    memory: Memory,
    *,
    most: int | None = None,
    confirm: Callable[[int], None] | None = None,
) -> Choice:
    """The most rows of one pass, a divisor of `rows` of at most `most`, that memory holds.

    `run(n)` makes a pass of n rows. Two small ones tell what a row takes; `confirm(n)`, where
    given, then tries the choice, which is halved while it runs out of memory. Raises
    `CapacityError` where not even one row fits.
    """
    sizes = [n for n in halvings(rows) if n <= max(most or rows, 1)] or [1]
    free, each = memory.free(), None
    if len(sizes) > 1:
        sizes, each = _fitting(sizes, run, memory, free)
    if confirm is None:
        return Choice(sizes[0], "measured", free, each)
    for size in sizes:
        if _fits(lambda n=size: confirm(n)):  # type: ignore[misc]
            return Choice(size, "measured", free, each)
    raise _too_small(free)


def _fitting(
    sizes: list[int], run: Callable[[int], None], memory: Memory, free: int | None
) -> tuple[list[int], int | None]:
    """The sizes that fit by what the two smallest take, and the bytes of one more row."""
    peaks: list[int | None] = []
    for size in (sizes[-1], sizes[-2]):
        if not _fits(lambda n=size: peaks.append(memory.peak(lambda: run(n)))):  # type: ignore[misc]
            if size == sizes[-1]:
                raise _too_small(free)
            return sizes[-1:], None
    first, second = peaks
    if first is None or second is None:
        return sizes, None
    low, high = sizes[-1], sizes[-2]
    each = max(1, (second - first) // (high - low))
    if free is None:
        return sizes, each
    fitting = [n for n in sizes if first + each * (n - low) <= SAFE * free]
    return fitting or sizes[-1:], each


def _fits(work: Callable[[], None]) -> bool:
    """Do the work; False, with the memory given back, where it runs out of it."""
    try:
        work()
        return True
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    release()  # behind the error, whose frames hold tensors
    return False


def _too_small(free: int | None) -> CapacityError:
    left = "" if free is None else f" of {free / 1e9:.1f} GB"
    return CapacityError(
        f"the free memory{left} does not hold one sequence of this model in training; make"
        " training.sequence_length or the model smaller, or free memory on the device"
    )


def halvings(rows: int) -> Iterator[int]:
    """Divisors of `rows` from itself down to 1, each at most half of the one before."""
    size = rows
    yield size
    while size > 1:
        size = next(n for n in range(size // 2, 0, -1) if rows % n == 0)
        yield size


def smaller(rows: int, whole: int) -> int | None:
    """The next smaller size for a batch of `whole` rows, None below one row."""
    return next((n for n in halvings(whole) if n < rows), None)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, or what caused it, says that a device's memory is full."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, torch.OutOfMemoryError | MemoryError):
            return True
        if isinstance(seen, RuntimeError) and any(sign in str(seen).lower() for sign in _SIGNS):
            return True
        seen = seen.__cause__
    return False


def release() -> None:
    """Give cached memory back, so that the next try finds it whole."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return_freed_memory()


def out_of_memory(device: str, tokens: int, error: BaseException) -> CapacityError:
    """What running out of memory means in training, and its cure."""
    said = " ".join(str(error).split())[:160]
    return CapacityError(
        f"out of memory on {device} with micro-batches of {tokens:,} tokens; give --set"
        f" training.micro_batch_tokens={tokens // 2} or less, or free memory there ({said})"
    )
