"""Where jobs run: worker processes of this machine, or an executor of the user's, such as a
cluster's.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import (
    BrokenExecutor,
    Executor,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    as_completed,
)
from contextlib import contextmanager
from importlib import import_module
from itertools import cycle, islice
from multiprocessing.connection import wait
from typing import Any

from niblick.errors import NiblickError
from niblick.limits import cut
from niblick.registry import look_here


@contextmanager
def process_pool(workers: int) -> Iterator[Executor | None]:
    """A pool of `workers` fresh processes; None, for work in this one, where there is but one.

    The processes end with this one, however it ends.
    """
    if workers < 2:
        yield None
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_watch, args=(parent.sentinel,), daemon=True).start()


def _watch(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)


@contextmanager
def waiting_pool(jobs: int, gpus: Sequence[str] = ()) -> Iterator[Executor | None]:
    """A pool of `jobs` threads that wait for processes, each with a GPU of its own where there are
    enough (`own_gpu`); None, for one after another here, for a single job.
    """
    if jobs < 2:
        yield None
        return
    free: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    for gpu in islice(cycle(gpus or (None,)), jobs):
        free.put(gpu)
    with ThreadPoolExecutor(jobs, initializer=lambda: _take_gpu(free)) as pool:
        yield pool


_thread = threading.local()


def _take_gpu(free: queue.SimpleQueue[str | None]) -> None:
    _thread.gpu = free.get()


def own_gpu() -> str | None:
    """The GPU of this thread of a `waiting_pool`, as CUDA_VISIBLE_DEVICES names it."""
    return getattr(_thread, "gpu", None)


@contextmanager
def open_executor(name: str) -> Iterator[Executor]:
    """The `concurrent.futures.Executor` that `MODULE:FACTORY`, called without arguments, returns.

    Raises `NiblickError` where there is no such factory, or it fails or returns something else.
    """
    module, _, attribute = name.partition(":")
    look_here()
    try:
        make = getattr(import_module(module), attribute)
    except Exception as error:  # noqa: BLE001  # whatever a module of the user's does
        raise NiblickError(
            f'--executor {name!r} is not like "concurrent.futures:ProcessPoolExecutor":'
            f" {cut(error, 120)}"
        ) from None
    try:
        made = make()
    except Exception as error:  # noqa: BLE001  # whatever a factory of the user's does
        raise NiblickError(f"--executor {name!r} failed: {cut(error, 120)}") from None
    if not isinstance(made, Executor):
        raise NiblickError(
            f"--executor {name!r} gave a {type(made).__name__}, not a concurrent.futures.Executor"
        )
    with made as pool:
        yield pool


def run_all(
    function: Callable[[Any], Any], jobs: Sequence[Any], executor: Executor | None
) -> Iterator[Any]:
    """What `function` gives for each job as it is done; the first failure cancels the rest."""
    if executor is None:
        yield from map(function, jobs)
        return
    futures = [executor.submit(function, job) for job in jobs]
    try:
        for future in as_completed(futures):
            yield future.result()
    except BrokenExecutor as error:
        raise NiblickError(
            f"a worker process ended ({error}); the same command goes on from what is finished"
        ) from None
    finally:
        for future in futures:
            future.cancel()
