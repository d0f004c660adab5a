"""The engine for browsers behind the interface of all engines, under wasmtime, for tests."""

from __future__ import annotations

import ctypes
from functools import cache

import numpy as np
import wasmtime

import niblick
from niblick.browser import wasm
from niblick.browser.image import COLUMNS, flatten
from niblick.engine.base import Engine, Ids, Wanted
from niblick.engine.sampling import Sampling

_WANTED: dict[Wanted, int] = {"none": 0, "last": 1, "all": 2}


@cache
def module() -> tuple[wasmtime.Engine, wasmtime.Module]:
    """The compiled module, made machine code once."""
    runtime = wasmtime.Engine()
    return runtime, wasmtime.Module(runtime, wasm.compiled())


@cache
def shipped_image() -> bytes:
    """The image of the shipped model."""
    model = niblick.load("pocket")
    return flatten(model.plan, model.tensors)


class WasmEngine(Engine):
    """One sequence of a model, given its image or its tensors."""

    def __init__(self, plan, tensors=None, *, image: bytes | None = None) -> None:
        self.name, self.slots, self.columns = "wasm", 1, COLUMNS
        self.vocab_size = plan.model.vocab_size
        runtime, code = module()
        self._store = wasmtime.Store(runtime)
        self._exports = wasmtime.Instance(self._store, code, []).exports(self._store)
        if "_initialize" in self._exports:
            self.call("_initialize")
        image = image or flatten(plan, tensors)
        at = self.call("nb_floats", len(image) // 4 + 1)
        self._exports["memory"].write(self._store, image, at)
        self._engine = self.call("nb_open", at, len(image))
        assert self._engine, "the image is refused"
        self._given = self.call("nb_floats", 3 * COLUMNS)
        self._stride = self.call("nb_stride", self._engine)
        self.weight_bytes = self.state_bytes = 0

    def call(self, name: str, *arguments):
        """One exported function."""
        return self._exports[name](self._store, *arguments)

    def reset(self, slot: int, *, at: int = 0) -> None:
        """See `Engine.reset`."""
        self.call("nb_reset", self._engine, slot, at)

    def advance(self, slots: Ids, tokens: Ids, wanted: Wanted) -> None:
        """See `Engine.advance`."""
        given = np.array([slots, tokens], dtype="<i4")
        self._exports["memory"].write(self._store, given.tobytes(), self._given)
        places = self._given, self._given + 4 * len(tokens)
        assert not self.call("nb_run", self._engine, len(tokens), *places, _WANTED[wanted])

    def logits(self, slot: int):
        """See `Engine.logits`."""
        return self._floats(self.call("nb_logits", self._engine, slot), self.vocab_size)

    def rows(self, count: int):
        """See `Engine.rows`."""
        found = self._floats(self.call("nb_rows", self._engine), count * self._stride)
        return found.reshape(count, self._stride)[:, : self.vocab_size]

    def nll(self, targets):
        """See `Engine.nll`; done by the library."""
        wanted = np.ascontiguousarray(targets, dtype="<i4")
        self._exports["memory"].write(self._store, wanted.tobytes(), self._given)
        out = self._given + wanted.nbytes
        self.call("nb_nll", self._engine, *wanted.shape, self._given, out)
        return self._floats(out, wanted.size).reshape(wanted.shape)

    def choose(self, slot: int, sampling: Sampling, draw: int, vocab: int | None = None) -> int:
        """See `Engine.choose`; done by the library."""
        return self.call(
            "nb_choose",
            self._engine,
            slot,
            self.vocab_size if vocab is None else vocab,
            sampling.temperature,
            sampling.top_k,
            sampling.top_p,
            ctypes.c_int64(sampling.seed).value,
            draw,
        )

    def _floats(self, at: int, count: int):
        data = self._exports["memory"].read(self._store, at, at + 4 * count)
        return np.frombuffer(data, dtype="<f4").copy()
