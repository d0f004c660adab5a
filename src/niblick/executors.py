"""Where jobs run: worker processes of this machine, or an executor of the user's, such as a
cluster's.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from importlib import import_module
from multiprocessing.connection import wait

from niblick.errors import NiblickError
from niblick.limits import cut


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
def open_executor(name: str) -> Iterator[Executor]:
    """The `concurrent.futures.Executor` that `MODULE:FACTORY`, called without arguments, returns.

    Raises `NiblickError` where there is no such factory, or it fails or returns something else.
    """
    module, _, attribute = name.partition(":")
    try:
        make = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
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
