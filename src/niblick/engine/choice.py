"""Which engine runs a model here: the native one where it can, else plain numpy."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Literal

from niblick.codecs.quantized import Tensors
from niblick.engine.base import Engine
from niblick.engine.ensemble import EnsembleEngine
from niblick.engine.library import build_in_background
from niblick.engine.native import NativeEngine
from niblick.engine.structures import unsupported
from niblick.errors import NiblickError, NiblickWarning
from niblick.limits import MAX_CONTEXT, MAX_COUNT, MAX_THREADS, quoted
from niblick.plan import Plan, each_member
from niblick.toolchain import ENGINE

Build = Literal["now", "background", "never"]


def check_sizes(slots: int, threads: int | None, context: int | None) -> None:
    """`NiblickError` where one is out of range."""
    for name, value, most in (
        ("slots", slots, MAX_COUNT),
        ("threads", threads, MAX_THREADS),
        ("context", context, MAX_CONTEXT),
    ):
        if value is not None and not 1 <= value <= most:
            raise NiblickError(f"{name} {quoted(value)}: accepted are 1 to {most:,}")


def open_engine(
    plan: Plan,
    tensors: Tensors,
    *,
    slots: int = 1,
    threads: int | None = None,
    context: int | None = None,
    build: Build = "now",
    kind: Literal["native", "numpy"] | None = None,
) -> Engine:
    """The fastest engine that can run the model here, or the `kind` asked for.

    The native one needs a library that is compiled once per machine: now (a few seconds), in the
    background for later processes, or never. The numpy engine stands in wherever there is none.
    `NiblickError` where the engine asked for cannot run here.
    """
    check_sizes(slots, threads, context)
    why = unsupported(plan)
    if why is None and kind != "numpy":
        library = ENGINE.obtain() if build == "now" else ENGINE.load()
        if library is not None:
            return NativeEngine(
                plan, tensors, library, slots=slots, threads=threads, context=context
            )
        if build == "background" and ENGINE.compiler():
            build_in_background()
        why = "there is no C compiler" if not ENGINE.compiler() else "it is not compiled yet"
        if kind is None and not ENGINE.compiler():
            say_once(
                "the numpy engine runs this model, which is slow: this installation has no native"
                " library and there is no C compiler; install a wheel for this platform, or ziglang"
            )
    if kind == "native":
        raise NiblickError(f"the native engine cannot run this model here: {why}")
    from niblick.engine.plain import NumpyEngine

    engines = [
        NumpyEngine(member, own, slots=slots, context=context)
        for member, own in each_member(plan, tensors)
    ]
    return EnsembleEngine(engines) if plan.members else engines[0]


@cache
def say_once(message: str) -> None:
    """Warn in one line, once a process."""
    warnings.warn(message, NiblickWarning, stacklevel=3)
