"""Continuous batching: one thread that steps every running text together.

A text waits for a slot, reads its prompt in pieces beside those that already write, then writes one
token in every step. Guarantees: its tokens are those that it gets alone; requests get slots in
turn; the queue is bounded; a cancelled text frees its slot within a round.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from niblick.engine import Engine, Likelihoods, Sampling, likelihoods, sequence
from niblick.engine.batch import NO_TOKEN, SEQUENCE, Sequences
from niblick.errors import NiblickError

Finish = Literal["length", "document", "failed"]
MOST_STEPS = 32  # of a round


@dataclass(kw_only=True, eq=False)
class Job:
    """One text to write: ids of its prompt, how it draws, and what likelihoods are wanted.

    `end` is the token after which no more come; `likeliest`, where it is not None, asks for the
    likelihood of every new token with so many alternatives; `scored` for the prompt's, too. `take`
    is called with what a round brought, by whoever the batcher's `deliver` hands the round to.
    """

    ids: NDArray[np.integer[Any]]
    sampling: Sampling
    max_tokens: int
    vocab: int
    end: int | None = None
    likeliest: int | None = None
    scored: bool = False
    take: Callable[[Progress], None] = lambda progress: None
    slot: int = -1
    read: int = 0
    started: float = 0.0
    cancelled: bool = False


@dataclass
class Progress:
    """What one round brought a job."""

    job: Job
    tokens: list[int] = field(default_factory=list)
    likelihoods: list[Likelihoods] = field(default_factory=list)
    prompt: list[Likelihoods] = field(default_factory=list)  # of ids 1.., as far as read
    finish: Finish | None = None


class FullError(NiblickError):
    """The queue is full; try again in `seconds`."""

    def __init__(self, seconds: int) -> None:
        super().__init__(f"the queue is full; try again in {seconds} s")
        self.seconds = seconds


class Batcher:
    """Runs jobs on `engine`; `deliver` gets each round's progress on the batcher's own thread."""

    def __init__(
        self, engine: Engine, deliver: Callable[[list[Progress]], None], *, queue: int
    ) -> None:
        self.engine, self.queue = engine, queue
        self.busy_seconds = 0.0
        self._deliver = deliver
        self._changed = threading.Condition()
        self._requests: deque[deque[Job]] = deque()  # those with jobs that wait for a slot
        self._waiting = 0
        self._free = list(range(engine.slots))[::-1]
        self._reading: list[Job] = []
        self._writing: list[Job] = []
        self._rows = np.zeros(engine.slots, dtype=SEQUENCE)
        self._step = 0.001  # seconds, a moving average
        self._turn = 0
        self._held = 1.0  # seconds that a job holds its slot, a moving average
        self._stopping = False
        self.failure: str | None = None
        self._thread = threading.Thread(target=self._run, name="niblick-engine", daemon=True)

    @property
    def running(self) -> int:
        """Jobs that have a slot."""
        return len(self._reading) + len(self._writing)

    @property
    def waiting(self) -> int:
        """Jobs that wait for one."""
        return self._waiting

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def stop(self) -> None:
        """End after the round under way; jobs that still run get no more."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    @property
    def most(self) -> int:
        """Jobs of one request for which there can be room."""
        return self.queue + len(self._rows)

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queue the jobs of one request; `FullError` where the queue has no room for them all."""
        with self._changed:
            if self.failure is not None:
                raise NiblickError(self.failure)
            if self._waiting + len(jobs) > self.queue + len(self._free):
                raise FullError(self._retry_after())
            self._requests.append(deque(jobs))
            self._waiting += len(jobs)
            self._changed.notify()

    def cancel(self, jobs: Sequence[Job]) -> None:
        """Give the jobs no more tokens, and their slots to others."""
        with self._changed:
            for job in jobs:
                job.cancelled = True
            self._changed.notify()

    def _retry_after(self) -> int:
        turns = 1 + self._waiting / self.engine.slots
        return max(1, min(60, round(turns * self._held)))

    def _run(self) -> None:
        found: list[Progress]
        while True:
            with self._changed:
                while not (self._stopping or self._requests or self.running):
                    self._changed.wait()
                if self._stopping:
                    return
                self._settle()
            began = time.perf_counter()
            try:
                found = self._round()
            except Exception as error:  # noqa: BLE001  (its clients must hear of it)
                found = self._fail(error)
            self.busy_seconds += time.perf_counter() - began
            if found:
                self._deliver(found)

    def _fail(self, error: Exception) -> list[Progress]:
        with self._changed:
            self.failure = f"the engine failed: {type(error).__name__}: {error}"
            lost = [*self._reading, *self._writing, *(j for each in self._requests for j in each)]
            self._requests.clear()
            self._reading, self._writing, self._waiting = [], [], 0
        return [Progress(job, finish="failed") for job in lost]

    def _settle(self) -> None:
        """Drop what was cancelled, and give free slots to requests in turn."""
        for job in [j for j in (*self._reading, *self._writing) if j.cancelled]:
            self._release(job)
        for _ in range(len(self._requests)):
            left = deque(job for job in self._requests.popleft() if not job.cancelled)
            if left:
                self._requests.append(left)
        while self._free and self._requests:
            jobs = self._requests.popleft()
            job = jobs.popleft()
            if jobs:
                self._requests.append(jobs)
            job.slot, job.started = self._free.pop(), time.monotonic()
            self.engine.reset(job.slot)
            self._reading.append(job)
        self._waiting = sum(map(len, self._requests))

    def _release(self, job: Job) -> None:
        (self._reading if job in self._reading else self._writing).remove(job)
        self._free.append(job.slot)
        self._held += 0.1 * (time.monotonic() - job.started - self._held)

    def _round(self) -> list[Progress]:
        """Some of the prompts, then some steps of all texts that are being written."""
        span = 0.010 + 0.0006 * len(self._writing)  # seconds: many texts share an event's cost
        found = self._read(time.perf_counter() + span)
        if self._writing:
            found += self._write(span)
        return found

    def _read(self, until: float) -> list[Progress]:
        """Pieces of prompts, until it is time to write again."""
        found: list[Progress] = []
        while self._reading:
            pieces = self._pieces()
            scored = pieces[0][0] if pieces[0][0].scored else None
            slots = np.concatenate([np.full(count, job.slot) for job, count in pieces])
            ids = np.concatenate([job.ids[job.read : job.read + count] for job, count in pieces])
            ends = any(job.read + count == len(job.ids) for job, count in pieces)
            self.engine.advance(slots, ids, "all" if scored else "last" if ends else "none")
            if scored:
                found.append(self._scores(scored, len(ids)))
            for job, count in pieces:
                job.read += count
                if job.read == len(job.ids):
                    found += self._begin(job)
            if not self._writing or time.perf_counter() >= until:
                break
        return found

    def _pieces(self) -> list[tuple[Job, int]]:
        """What is read in the next call: the oldest first and the shortest first, in turn, so that
        short prompts pass by long ones and none waits for ever. A scored one is read by itself.
        """
        self._turn += 1
        order = list(self._reading)
        if self._turn % 2:
            order.sort(key=lambda job: len(job.ids) - job.read)
        room = self.engine.columns
        found: list[tuple[Job, int]] = []
        for job in order:
            if job.scored and found:
                continue
            count = min(room, len(job.ids) - job.read)
            found.append((job, count))
            room -= count
            if not room or job.scored:
                break
        return found

    def _scores(self, job: Job, count: int) -> Progress:
        """Likelihoods of the ids after those of the newest call."""
        following = np.asarray(job.ids[job.read + 1 : job.read + 1 + count], dtype=np.int64)
        rows = self.engine.rows(count)[: len(following), : job.vocab]
        found = likelihoods(rows, following, job.likeliest or 0) if len(following) else []
        return Progress(job, prompt=found)

    def _begin(self, job: Job) -> list[Progress]:
        """The prompt has been read."""
        if job.max_tokens == 0:
            self._release(job)
            return [Progress(job, finish="length")]
        self._reading.remove(job)
        self._writing.append(job)
        self._rows[job.slot] = sequence(
            job.slot, job.sampling, max_tokens=job.max_tokens, vocab=job.vocab, end=job.end
        )[0]
        return []

    def _write(self, span: float) -> list[Progress]:
        """So many steps as `span` seconds take."""
        jobs, slots = self._writing, [job.slot for job in self._writing]
        rows = self._rows[slots]
        steps = max(1, min(int(span / self._step), MOST_STEPS, int(rows["left"].max())))
        began = time.perf_counter()
        found = [Progress(job) for job in jobs]
        if any(job.likeliest is not None for job in jobs):
            for _ in range(steps):
                self._one_step(rows, found)
        else:
            columns = self.engine.extend(rows, steps).T.tolist()
            for progress, tokens in zip(found, columns, strict=True):
                progress.tokens = tokens[: tokens.index(NO_TOKEN)] if NO_TOKEN in tokens else tokens
        self._step = 0.7 * self._step + 0.3 * (time.perf_counter() - began) / steps
        self._rows[slots] = rows
        for progress, left in zip(found, rows["left"].tolist(), strict=True):
            if not left:
                self._finish(progress)
        return found

    def _one_step(self, rows: Sequences, found: list[Progress]) -> None:
        """A step whose likelihoods are looked at."""
        told = [
            at
            for at, progress in enumerate(found)
            if progress.job.likeliest is not None and rows["left"][at] > 0
        ]
        logits = [
            self.engine.logits(found[at].job.slot)[: found[at].job.vocab].copy() for at in told
        ]
        tokens = self.engine.extend(rows, 1)[0].tolist()
        for progress, token in zip(found, tokens, strict=True):
            if token != NO_TOKEN:
                progress.tokens.append(token)
        for at, row in zip(told, logits, strict=True):
            count = found[at].job.likeliest or 0
            found[at].likelihoods += likelihoods(row[None], np.array([tokens[at]]), count)

    def _finish(self, progress: Progress) -> None:
        job = progress.job
        progress.finish = "length"
        if progress.tokens and progress.tokens[-1] == job.end:
            progress.finish = "document"
            del progress.tokens[-1], progress.likelihoods[len(progress.tokens) :]
        self._release(job)
