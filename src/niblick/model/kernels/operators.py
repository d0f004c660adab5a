"""The kernels as operators of torch, `torch.ops.niblick`, each with its gradient.

An operator is its schema and a function that makes the results and hands them to kernels. Run with
kernels that do nothing, the function is also the operator's fake form, which tracing needs. Its
gradient is the operator of the same name with "_back", tied to it by the names in their schemas:
"gNAME" is the gradient of the result or the argument NAME, any other argument is what the first
operator was given or gave.

Tensors are contiguous, on the CPU, activations of one float type, control values float32. The
shapes and equations are those of `niblick.components.functional`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from niblick.errors import NiblickError
from niblick.model.kernels.library import CHUNKS, Kernels

LIBRARY: Any = torch.library.Library("niblick", "DEF")  # type: ignore[no-untyped-call]
Run = Callable[..., None]
_loaded: list[Kernels] = []


@dataclass(frozen=True)
class Operator:
    """An operator by the names in its schema; `function` takes what runs the kernels first."""

    name: str
    arguments: tuple[str, ...]
    results: tuple[str, ...]
    function: Callable[..., Any]

    def __call__(self, *arguments: Any) -> tuple[Any, ...]:
        """Its results, without going through torch."""
        return _tuple(self.function(_run, *arguments))

    @property
    def gradient(self) -> Operator:
        """The operator that gives the gradients of its arguments."""
        return OPERATORS[f"{self.name}_back"]

    @property
    def kept(self) -> tuple[str, ...]:
        """What the gradient needs of the arguments and the results."""
        grads = {f"g{result}" for result in self.results}
        return tuple(name for name in self.gradient.arguments if name not in grads)

    def pull(
        self, back: Callable[..., Any], known: dict[str, Any], grads: Sequence[Tensor | None]
    ) -> tuple[Tensor | None, ...]:
        """Gradients of the arguments, by `back`, from those of the results and what was kept."""
        pairs = zip(self.results, grads, strict=True)
        known = known | {f"g{n}": None if g is None else g.contiguous() for n, g in pairs}
        found = _tuple(back(*(known[name] for name in self.gradient.arguments)))
        given = dict(zip(self.gradient.results, found, strict=True))
        absent = {name for name in self.kept if known[name] is None}
        return tuple(None if n in absent else given.get(f"g{n}") for n in self.arguments)


OPERATORS: dict[str, Operator] = {}


def use(kernels: Kernels) -> None:
    """Make `kernels` those that the operators call."""
    _loaded[:] = [kernels]


def _run(name: str, dtype: torch.dtype, *arguments: Any) -> None:
    if not _loaded:
        raise NiblickError("the niblick operators have no kernels; load_kernels() gives them")
    _loaded[0](name, dtype, *arguments)


def _skip(name: str, dtype: torch.dtype, *arguments: Any) -> None:
    """Kernels that do nothing."""


def _tuple(found: Any) -> tuple[Any, ...]:
    return tuple(found) if isinstance(found, tuple | list) else (found,)


def operator(schema: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Define an operator as a function of (run, *its arguments)."""

    def define(function: Callable[..., Any]) -> Callable[..., Any]:
        name, arguments, results = re.split(r"\(|\) -> ", schema, maxsplit=2)
        OPERATORS[name] = Operator(name, _names(arguments), _names(results.strip("()")), function)
        LIBRARY.define(schema)
        LIBRARY.impl(name, partial(function, _run), "CPU")
        torch.library.register_fake(f"niblick::{name}", partial(function, _skip), lib=LIBRARY)
        if name.endswith("_back"):
            _differentiate(OPERATORS[name.removesuffix("_back")])
        return function

    return define


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.split()[-1] for part in text.split(", "))


def _differentiate(operator: Operator) -> None:
    """Tell autograd of an operator's gradient."""
    backward = getattr(torch.ops.niblick, f"{operator.name}_back").default

    def keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        known = dict(zip(operator.arguments, inputs, strict=True))
        known |= zip(operator.results, _tuple(output), strict=True)
        ctx.plain = {n: known[n] for n in operator.kept if not isinstance(known[n], Tensor)}
        ctx.names = [name for name in operator.kept if name not in ctx.plain]
        ctx.save_for_backward(*(known[name] for name in ctx.names))
        ctx.set_materialize_grads(False)

    def back(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        known = ctx.plain | dict(zip(ctx.names, ctx.saved_tensors, strict=True))
        return operator.pull(backward, known, grads)

    name = f"niblick::{operator.name}"
    torch.library.register_autograd(name, back, setup_context=keep, lib=LIBRARY)


def sizes(x: Tensor) -> tuple[int, int]:
    """(rows, width) of x (..., width)."""
    return x.numel() // x.shape[-1], x.shape[-1]


def like(*tensors: Tensor) -> list[Tensor]:
    """A fresh tensor like each."""
    return [torch.empty_like(t) for t in tensors]


def fold(run: Run, parts: Tensor) -> Tensor:
    """The sum (...) of parts (N, ...), float32."""
    out = parts.new_empty(parts.shape[1:])
    run("fold", parts.dtype, parts, out, len(parts), out.numel())
    return out


def partial_sums(like: Tensor, *shape: int) -> Tensor:
    """Room for what kernels add up in CHUNKS parts."""
    return like.new_empty((CHUNKS, *shape), dtype=torch.float32)


def floats(like: Tensor, *shape: int) -> Tensor:
    """Room for float32 numbers where `like` is."""
    return like.new_empty(shape, dtype=torch.float32)


def check(run: Run, ids: Tensor, count: int) -> None:
    """Raise `IndexError` for ids outside 0 .. count - 1."""
    if run is _skip or ids.numel() == 0:
        return
    low, high = (int(each) for each in torch.aminmax(ids))
    if low < 0 or high >= count:
        raise IndexError(f"token ids {low}..{high} are outside 0..{count - 1}")


def head_sizes(y: Tensor, v: Tensor) -> tuple[int, int, int, int]:
    """Positions, heads, groups and width of y (B, T, H, E) beside v (B, T, G, E)."""
    return y.shape[0] * y.shape[1], y.shape[2], v.shape[2], y.shape[3]
