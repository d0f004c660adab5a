"""The native engine: the plan run by a small compiled library over quantized weights.

Guarantees: codes as the file holds them (floats in 24 bits, see `weights`), float32 arithmetic, no
allocation per token, and the same numbers for every number of threads, batch and cut of a prompt.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

from niblick.codecs.quantized import Tensors
from niblick.engine.base import Engine, Ids, Wanted
from niblick.engine.batch import Sequences
from niblick.engine.sampling import Sampling
from niblick.engine.structures import Layout, PlanStruct
from niblick.errors import NiblickError
from niblick.plan import Plan, each_member, member_prefixes
from niblick.runtime import thread_count

COLUMNS = 64  # tokens per call
_WANTED: dict[Wanted, int] = {"none": 0, "last": 1, "all": 2}


class NativeEngine(Engine):
    """`slots` sequences of a model or an ensemble; plan and tensors are not needed afterwards."""

    def __init__(
        self,
        plan: Plan,
        tensors: Tensors,
        library: ctypes.CDLL,
        *,
        slots: int = 1,
        threads: int | None = None,
        context: int | None = None,
    ) -> None:
        """Lay the model out; `MemoryError` where weights or state do not fit."""
        self._engine = None
        self._library = _declare(library)
        self.threads = max(1, min(threads or thread_count(), 64))
        self.name, self.slots, self.vocab_size = "native", slots, plan.model.vocab_size
        self.columns = max(COLUMNS, slots)
        self._layouts = [
            Layout(
                member,
                own,
                self._library,
                context=context or plan.model.context,
                sizes={"slots": slots, "columns": self.columns, "threads": self.threads},
            )
            for member, own in each_member(plan, tensors)
        ]
        self.weight_bytes = sum(layout.weight_bytes for layout in self._layouts)
        self.state_bytes = sum(layout.state_bytes for layout in self._layouts)
        self._create()
        self._slots, self._tokens = (np.zeros(self.columns, dtype=np.int32) for _ in range(2))
        self._order = np.arange(slots, dtype=np.int32)
        self._at = tuple(a.ctypes.data for a in (self._slots, self._tokens, self._order))
        self._logits = [
            self._view(self._library.nb_logits(self._engine, slot), (self.vocab_size,))
            for slot in range(slots)
        ]
        self._stride = self._library.nb_stride(self._engine)

    def _create(self) -> None:
        """The engine, or those of an ensemble's members, joined."""
        for layout in self._layouts:
            made = self._library.nb_create(ctypes.byref(layout.plan))
            if not made:
                raise MemoryError("the engine's state does not fit into memory")
            if self._engine:
                self._library.nb_join(self._engine, made)
            else:
                self._engine = made

    def __del__(self) -> None:
        if getattr(self, "_engine", None):
            self._library.nb_destroy(self._engine)
            self._engine = None

    @property
    def bits(self) -> dict[str, int]:
        """Bits per weight in memory of every matrix."""
        named = zip(member_prefixes(len(self._layouts)), self._layouts, strict=True)
        return {prefix + k: bits for prefix, part in named for k, bits in part.bits.items()}

    def reset(self, slot: int, *, at: int = 0) -> None:
        """See `Engine.reset`."""
        self._library.nb_reset(self._engine, slot, at)

    def advance(self, slots: Ids, tokens: Ids, wanted: Wanted) -> None:
        """See `Engine.advance`."""
        count = len(tokens)
        self._slots[:count], self._tokens[:count] = slots, tokens
        self._run(count, self._at[0], _WANTED[wanted])

    def step(self, tokens: Ids) -> None:
        """See `Engine.step`."""
        count = len(tokens)
        for slot, token in enumerate(tokens):
            if not 0 <= token < self.vocab_size or slot >= self.slots:
                self.check(slot, [token])
            self._tokens[slot] = token
        if count:
            self._run(count, self._at[2], 1)

    def logits(self, slot: int) -> NDArray[np.float32]:
        """See `Engine.logits`."""
        return self._logits[slot]

    def rows(self, count: int) -> NDArray[np.float32]:
        """See `Engine.rows`."""
        rows = self._view(self._library.nb_rows(self._engine), (count, self._stride))
        return rows[:, : self.vocab_size]

    def nll(self, targets: NDArray[np.integer]) -> NDArray[np.float32]:
        """See `Engine.nll`; done by the library."""
        wanted = np.ascontiguousarray(targets, dtype=np.int32)
        found = np.empty(wanted.shape, dtype=np.float32)
        self._library.nb_nll(self._engine, *wanted.shape, wanted.ctypes.data, found.ctypes.data)
        return found

    def choose(self, slot: int, sampling: Sampling, draw: int, vocab: int | None = None) -> int:
        """See `Engine.choose`; done by the library."""
        count = self.vocab_size if vocab is None else min(vocab, self.vocab_size)
        found: int = self._library.nb_choose(
            self._engine,
            slot,
            count,
            sampling.temperature,
            min(sampling.top_k, count),
            sampling.top_p,
            sampling.seed & (1 << 64) - 1,
            draw,
        )
        return found

    def extend(self, sequences: Sequences, steps: int) -> NDArray[np.int32]:
        """See `Engine.extend`; done by the library in one call."""
        if len(sequences) > self.slots:
            raise NiblickError(f"{len(sequences)} sequences do not fit {self.slots} slots")
        rows = np.ascontiguousarray(sequences)
        found = np.empty((steps, len(rows)), dtype=np.int32)
        self._library.nb_continue(
            self._engine, len(rows), rows.ctypes.data, steps, found.ctypes.data
        )
        if rows is not sequences:
            sequences[:] = rows
        return found

    def _run(self, count: int, slots: int, wanted: int) -> None:
        failed = self._library.nb_run(self._engine, count, slots, self._at[1], wanted)
        assert not failed

    @staticmethod
    def _view(at: Any, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """The engine's own memory as an array."""
        return np.ctypeslib.as_array(at, shape=shape)


def _declare(library: ctypes.CDLL) -> ctypes.CDLL:
    """Argument and result types of the functions in native/engine.h."""
    handle, integer, pointer = ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p
    long, real, floats = ctypes.c_int64, ctypes.c_double, ctypes.POINTER(ctypes.c_float)
    types = {
        "nb_create": (handle, [ctypes.POINTER(PlanStruct)]),
        "nb_floats": (handle, [long]),
        "nb_free": (None, [handle]),
        "nb_join": (None, [handle, handle]),
        "nb_destroy": (None, [handle]),
        "nb_reset": (None, [handle, integer, long]),
        "nb_run": (integer, [handle, integer, pointer, pointer, integer]),
        "nb_logits": (floats, [handle, integer]),
        "nb_rows": (floats, [handle]),
        "nb_stride": (integer, [handle]),
        "nb_nll": (None, [handle, integer, integer, pointer, pointer]),
        "nb_continue": (None, [handle, integer, pointer, integer, pointer]),
        "nb_choose": (
            integer,
            [handle, integer, integer, real, integer, real, ctypes.c_uint64, ctypes.c_uint64],
        ),
    }
    for name, (result, arguments) in types.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library
