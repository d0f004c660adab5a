"""The native engine: the plan run by a small compiled library over quantized weights and
preallocated state.

Guarantees: exact weights (or 16 bits of them, see `lattice`), float32 arithmetic, no allocation per
token, and the same numbers for every number of threads, batch and cut of a prompt.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from niblick.engine.base import Engine, ReferenceEngine
from niblick.engine.library import ENGINE, build_in_background
from niblick.engine.sampling import Sampling
from niblick.engine.structures import Layout, PlanStruct, unsupported
from niblick.model import LanguageModel
from niblick.runtime import settle_threads

COLUMNS = 64  # prompt tokens per call


class NativeEngine(Engine):
    """`slots` sequences of a model; the model itself is not needed afterwards."""

    def __init__(
        self,
        model: LanguageModel,
        library: ctypes.CDLL,
        *,
        slots: int = 1,
        threads: int | None = None,
        exact: bool = True,
    ) -> None:
        """Lay `model` out. `exact` off rounds every matrix to 8 bits, whatever it holds."""
        self._engine = None
        self._library = _declare(library)
        self.threads = max(1, min(threads or torch.get_num_threads(), 64))
        self._columns = max(COLUMNS, slots)
        self._layout = Layout(
            model,
            self._library,
            slots=slots,
            columns=self._columns,
            threads=self.threads,
            exact=exact,
        )
        self.name, self.slots, self.vocab_size = "native", slots, model.recipe.vocab_size
        self.weight_bytes, self.state_bytes = self._layout.weight_bytes, self._layout.state_bytes
        self._engine = self._library.nb_create(ctypes.byref(self._layout.plan))
        if not self._engine:
            raise MemoryError("the engine's state does not fit into memory")
        self._slots = np.zeros(self._columns, dtype=np.int32)
        self._tokens = np.zeros(self._columns, dtype=np.int32)
        self._rows = np.arange(slots, dtype=np.int32)
        self._pointers = {id(a): a.ctypes.data for a in (self._slots, self._tokens, self._rows)}
        self._logits = [self._row(slot) for slot in range(slots)]

    def __del__(self) -> None:
        if getattr(self, "_engine", None):
            self._library.nb_destroy(self._engine)
            self._engine = None

    @property
    def bits(self) -> dict[str, int]:
        """Bits per weight in memory of every matrix."""
        return dict(self._layout.bits)

    def read(self, slot: int, tokens: Sequence[int] | NDArray[np.int64], *, at: int = 0) -> None:
        """See `Engine.read`; `at` is the position at which the prompt's first token stands."""
        ids = np.asarray(tokens, dtype=np.int64)
        self._check(slot, ids)
        self._library.nb_reset(self._engine, slot, at)
        self._slots[:] = slot
        for start in range(0, len(ids), self._columns):
            part = ids[start : start + self._columns]
            self._tokens[: len(part)] = part
            self._run(len(part), self._slots, wanted=start + len(part) == len(ids))

    def step(self, tokens: Sequence[int]) -> None:
        """See `Engine.step`."""
        count = len(tokens)
        for slot, token in enumerate(tokens):
            if not 0 <= token < self.vocab_size or slot >= self.slots:
                self._check(slot, np.array([token]))
            self._tokens[slot] = token
        if count:
            self._run(count, self._rows, wanted=True)

    def logits(self, slot: int) -> NDArray[np.float32]:
        """See `Engine.logits`."""
        return self._logits[slot]

    def choose(self, slot: int, sampling: Sampling, draw: int, vocab: int | None = None) -> int:
        """See `Engine.choose`; done by the library."""
        count = self.vocab_size if vocab is None else min(vocab, self.vocab_size)
        found: int = self._library.nb_choose(
            self._engine,
            slot,
            count,
            sampling.temperature,
            sampling.top_k,
            sampling.top_p,
            sampling.seed & (1 << 64) - 1,
            draw,
        )
        return found

    def _run(self, count: int, slots: NDArray[np.int32], *, wanted: bool) -> None:
        failed = self._library.nb_run(
            self._engine,
            count,
            self._pointers[id(slots)],
            self._pointers[id(self._tokens)],
            int(wanted),
        )
        assert not failed

    def _row(self, slot: int) -> NDArray[np.float32]:
        """A view of one slot's logits in the engine's memory."""
        return np.ctypeslib.as_array(
            self._library.nb_logits(self._engine, slot), shape=(self.vocab_size,)
        )


def open_engine(
    model: LanguageModel,
    *,
    slots: int = 1,
    threads: int | None = None,
    build: Literal["now", "background", "never"] = "now",
) -> Engine:
    """The fastest engine that can run `model` here; its `name` says which one it is.

    The native one needs a library that is compiled once per machine: now (a few seconds), in the
    background for later processes, or never. The reference engine stands in wherever there is none.
    """
    settle_threads()
    if next(model.parameters()).device.type == "cpu" and unsupported(model) is None:
        if build == "now":
            ENGINE.build()
        library = ENGINE.load()
        if library is not None:
            return NativeEngine(model, library, slots=slots, threads=threads)
        if build == "background" and ENGINE.compiler():
            build_in_background()
    return ReferenceEngine(model, slots=slots)


def _declare(library: ctypes.CDLL) -> ctypes.CDLL:
    """Argument and result types of the functions in native/engine.h."""
    handle, integer, pointer = ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p
    library.nb_create.restype, library.nb_create.argtypes = handle, [ctypes.POINTER(PlanStruct)]
    library.nb_floats.restype, library.nb_floats.argtypes = handle, [ctypes.c_int64]
    library.nb_free.restype, library.nb_free.argtypes = None, [handle]
    library.nb_destroy.restype, library.nb_destroy.argtypes = None, [handle]
    library.nb_reset.restype, library.nb_reset.argtypes = None, [handle, integer, ctypes.c_int64]
    library.nb_run.restype, library.nb_run.argtypes = (
        integer,
        [handle, integer, pointer, pointer, integer],
    )
    library.nb_logits.restype, library.nb_logits.argtypes = (
        ctypes.POINTER(ctypes.c_float),
        [handle, integer],
    )
    library.nb_choose.restype = integer
    library.nb_choose.argtypes = [
        handle,
        integer,
        integer,
        ctypes.c_double,
        integer,
        ctypes.c_double,
        ctypes.c_uint64,
        ctypes.c_uint64,
    ]
    return library
