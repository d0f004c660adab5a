"""The thread pool of our libraries: every unit once, the same results for every number of threads,
whoever calls it and wherever from.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from niblick.model.kernels import Kernels
from niblick.toolchain import CLibrary

TASK = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)
BODY = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
PART = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int)
SOURCE = {"name": "pool", "folder": "native", "names": ("pool.c", "pool.h")}
FLAGS = ("-std=gnu11", "-O2", "-pthread")


class Pool:
    """pool.h, with Python's functions as work."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library
        library.nb_each.argtypes = [ctypes.c_int64, TASK, ctypes.c_void_p]
        library.nb_team.argtypes = [ctypes.c_int, PART, ctypes.c_void_p]

    def each(self, units: int, work: Callable[[int], Any], threads: int) -> None:
        self.library.nb_threads(threads)
        self.library.nb_each(units, TASK(lambda _, unit: work(unit) and None), None)

    def team(self, threads: int, work: Callable[[int, int], Any]) -> int:
        granted = int(self.library.nb_begin(threads))
        self.library.nb_team(granted, PART(lambda _, i: work(i, granted) and None), None)
        return granted


@pytest.fixture(scope="module")
def pool(kernel_cache: Path) -> Pool:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(kernel_cache))
        library = CLibrary(**SOURCE, flags=FLAGS).obtain()  # type: ignore[arg-type]
    if library is None:
        pytest.skip("no C compiler here")
    return Pool(library)


@given(units=st.integers(0, 70), threads=st.integers(-1, 9))
@settings(deadline=None, max_examples=60)
def test_every_unit_is_worked_on_once(pool: Pool, units: int, threads: int) -> None:
    done: list[int] = []
    pool.each(units, done.append, threads)
    assert sorted(done) == list(range(units))


def test_work_is_shared_among_threads(pool: Pool) -> None:
    seen: set[int] = set()

    def work(unit: int) -> None:
        seen.add(threading.get_ident())
        time.sleep(0.02)  # so long that nobody does all of it before the others have come

    pool.each(40, work, 3)
    assert len(seen) == 3


def test_a_call_from_inside_of_one_is_done_by_its_own_thread(pool: Pool) -> None:
    done: list[tuple[int, int]] = []

    def work(unit: int) -> None:
        me = threading.get_ident()
        inner = TASK(lambda _, i: done.append((unit, i)) if threading.get_ident() == me else None)
        pool.library.nb_each(5, inner, None)

    pool.each(6, work, 3)
    assert sorted(done) == [(unit, i) for unit in range(6) for i in range(5)]


def test_several_callers_at_once_get_what_they_asked_for(pool: Pool) -> None:
    results: dict[int, list[int]] = {caller: [] for caller in range(4)}

    def call(caller: int) -> None:
        for _ in range(25):
            pool.each(9, lambda unit: results[caller].append(unit), 3)

    callers = [threading.Thread(target=call, args=(caller,)) for caller in results]
    for each in callers:
        each.start()
    for each in callers:
        each.join()
    assert all(sorted(found) == sorted([*range(9)] * 25) for found in results.values())


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_a_team_meets_before_any_of_it_goes_on(pool: Pool, threads: int) -> None:
    arrived = [0] * threads
    behind: list[int] = []

    def work(thread: int, granted: int) -> None:
        for turn in range(1, 30):
            arrived[thread] = turn
            pool.library.nb_meet(granted)
            behind.extend(t for t in arrived if t < turn)
            pool.library.nb_meet(granted)

    assert pool.team(threads, work) == threads
    assert arrived == [29] * threads and not behind


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads' states are not told")
@pytest.mark.parametrize("busy", [False, True])
def test_threads_that_wait_fall_asleep(pool: Pool, busy: bool) -> None:
    ours: set[int] = set()
    pool.each(16, lambda unit: (ours.add(threading.get_native_id()), time.sleep(0.01)), 4)
    assert len(ours) == 4
    waiting = ours - {threading.get_native_id()}

    def asleep(thread: int) -> bool:
        stat = Path(f"/proc/self/task/{thread}/stat").read_text()
        return stat.rpartition(")")[2].split()[0] == "S"

    def await_sleep() -> None:
        for _ in range(2000):
            if all(map(asleep, waiting)):
                return
            time.sleep(0.005)
        raise AssertionError("a thread without work does not sleep")

    def work(thread: int, granted: int) -> None:
        if thread == 0:
            await_sleep()
        pool.library.nb_meet(granted)

    if busy:
        pool.team(4, work)  # the others wait for the first where the team meets
    else:
        await_sleep()


class Host:
    """Threads that nb_borrow takes, as OpenMP's are taken; `slow` keeps one of them away."""

    def __init__(self) -> None:
        self.calls, self.slow, self.mine = 0, False, threading.local()
        self.parallel = ctypes.CFUNCTYPE(None, BODY, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)(
            self.run
        )
        self.number = ctypes.CFUNCTYPE(ctypes.c_int)(lambda: self.mine.number)

    def run(self, body: Callable[[Any], Any], given: Any, threads: int, _: int) -> None:
        def enter(number: int) -> None:
            if number and self.slow:
                time.sleep(0.01)
            self.mine.number = number
            body(given)

        self.calls += 1
        others = [threading.Thread(target=enter, args=(i,)) for i in range(1, threads)]
        for each in others:
            each.start()
        enter(0)
        for each in others:
            each.join()


@pytest.fixture
def host(pool: Pool) -> Iterator[Host]:
    host = Host()
    pool.library.nb_borrow(host.parallel, host.number)
    yield host
    pool.library.nb_borrow(None, None)


def test_every_unit_is_worked_on_once_by_borrowed_threads(pool: Pool, host: Host) -> None:
    host.slow = True
    for threads in range(2, 6):
        done: list[int] = []
        pool.each(30, done.append, threads)
        assert sorted(done) == list(range(30))
    assert host.calls > 0


def test_a_host_that_comes_late_is_left_alone_for_a_while(pool: Pool, host: Host) -> None:
    host.slow = True
    calls = []
    for _ in range(400):
        pool.each(4, lambda unit: None, 2)
        calls.append(host.calls)
    assert calls[0] == 1 and 1 < calls[-1] < 10
    pauses = [calls.count(n) for n in range(1, calls[-1])]
    assert pauses[0] > 10 and pauses == sorted(pauses)  # longer each time


def test_a_forked_process_does_not_wait_for_torchs_threads() -> None:
    script = """
import os, torch
from niblick.model.kernels import load_kernels
torch.set_num_threads(3)
kernels = load_kernels()
if kernels is None:
    raise SystemExit(5)
def use():
    x, out = torch.ones(97 * 80), torch.empty(97 * 80)
    kernels("square", x.dtype, x, 0.5, out, 97, 80)
    return bool((out[-1] == 1).item())
child = os.fork() if use() else 0
if child == 0:
    os._exit(7 if use() else 1)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 7)
"""
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", script], timeout=60, check=False)
    if run.returncode == 5:
        pytest.skip("no C compiler here")
    assert run.returncode == 0


def test_a_forked_process_has_a_pool_of_its_own() -> None:
    script = f"""
import ctypes, os
from niblick.toolchain import CLibrary
library = CLibrary(**{SOURCE!r}, flags={FLAGS!r}).obtain()
if library is None:
    raise SystemExit(5)
task = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)
part = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int)
def use():
    done = []
    library.nb_threads(3)
    library.nb_each(ctypes.c_int64(20), task(lambda _, unit: done.append(unit)), None)
    granted = library.nb_begin(3)
    library.nb_team(granted, part(lambda _, i: library.nb_meet(granted) and None), None)
    return sorted(done) == list(range(20)) and granted == 3
if not use():
    raise SystemExit(1)
child = os.fork()
if child == 0:
    os._exit(7 if use() else 1)
raise SystemExit(0 if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7 and use() else 2)
"""
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", script], timeout=60, check=False)
    if run.returncode == 5:
        pytest.skip("no C compiler here")
    assert run.returncode == 0


def test_kernels_give_the_same_for_every_number_of_threads(kernels: Kernels) -> None:
    generator, before = torch.Generator().manual_seed(0), torch.get_num_threads()
    x, g = (torch.randn(97, 80, generator=generator) for _ in range(2))
    m0, m1 = (torch.randn(80, generator=generator) for _ in range(2))
    ids = torch.randint(0, 50, (97,), generator=generator)
    results = []
    try:
        for threads in (1, 2, 3, 4, 7):
            torch.set_num_threads(threads)
            for _ in range(40):
                mixed, n, inverse = torch.empty(97, 80), torch.empty(97, 80), torch.empty(97)
                kernels("mix_norm", x.dtype, x, g, m0, m1, 0.5, mixed, n, inverse, 97, 80)
                gx, gx0, gm = torch.empty(97, 80), torch.empty(97, 80), torch.empty(32, 2, 80)
                inputs = (None, g, mixed, inverse, x, g, m0, m1)
                kernels("mix_norm_back", x.dtype, *inputs, 0.5, gx, gx0, gm, 97, 80)
                table = torch.empty(50, 80)
                kernels("lookup_back", x.dtype, g, ids, table, 97, 50, 80)
                results.append([mixed, n, inverse, gx, gx0, gm, table])
    finally:
        torch.set_num_threads(before)
    for found in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found, results[0], strict=True))
