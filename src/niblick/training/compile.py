"""The compiled form of the loss: fused kernels on the CPU, torch.compile on CUDA, or plain torch.

Which of the two is a measurement (docs/performance.md): on the CPU torch.compile costs over a
minute of the budget and gains little, the kernels compile in seconds, once per machine.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from niblick.errors import TrainingError
from niblick.model import Ensemble, LanguageModel
from niblick.model.accelerated import accelerate
from niblick.model.graphs import one_graph
from niblick.model.kernels import Kernels, load_kernels, use_kernels
from niblick.model.lm import NO_FACTORS
from niblick.optim import Layout
from niblick.plan import Plan
from niblick.training.memory import is_out_of_memory
from niblick.training.overlap import Sink, early, hooked, tapped
from niblick.training.recorded import Batch, RecordedLoss, RecordedMembers

Compile = Literal["auto", "on", "off", "graphs", "no-graphs"]
Loss = Callable[[LanguageModel, Tensor, Tensor, Mapping[str, Tensor]], tuple[Tensor, Tensor]]


TRIALS = 3  # first calls of a CUDA graph: as a whole, recorded, replayed
# A launch takes Python 10 us; a layer's forward and backward have about 50; and a device that is
# kept busy makes 3e14 operations a second.
LAUNCH_SECONDS, LAUNCHES, RATE = 1e-5, 50, 3e14


def replays(wanted: Compile, device: str, plan: Plan, tokens: int | None) -> bool:
    """Whether passes of `tokens` are replayed as CUDA graphs: on CUDA alone, where the recipe says
    so or the device would wait for Python to launch its kernels.
    """
    if not device.startswith("cuda") or wanted in ("off", "no-graphs"):
        return False
    if wanted == "graphs":
        return True
    busy = 3 * plan.flops_per_token * (tokens or 0) / RATE
    return (
        tokens is not None
        and busy < LAUNCH_SECONDS * LAUNCHES * len(plan.layers) * plan.model.members
    )


def _recorded(
    loss: Loss, model: LanguageModel, *, side_by_side: bool
) -> RecordedLoss | RecordedMembers:
    """What records a loss on kernels; members of an ensemble are each a program of their own."""
    if not isinstance(model, Ensemble):
        return RecordedLoss(partial(loss, model), model)
    each = [RecordedLoss(partial(loss, member), member) for member in model.each]
    return RecordedMembers(each, threads=torch.get_num_threads() if side_by_side else 1)


class CompiledLoss:
    """(loss to minimise, mean next-token nll) of one micro-batch of at most `tokens`; `compiled`
    says whether a compiled form is in use, `replayed` whether as CUDA graphs. Where `sink` is kept,
    gradients of `layout` go to it.

    "auto" falls back to plain torch where there is no compiler or it fails (on CUDA with a
    warning), "on" raises `TrainingError` instead, "off" never compiles. "graphs" and
    "no-graphs" are "auto" that does not choose about CUDA graphs (see `replays`).
    """

    def __init__(
        self,
        loss: Loss,
        model: LanguageModel,
        wanted: Compile,
        device: str,
        *,
        tokens: int | None = None,
        layout: Layout | None = None,
        sink: Sink | None = None,
    ) -> None:
        def plain(
            inputs: Tensor, targets: Tensor, factors: Mapping[str, Tensor]
        ) -> tuple[Tensor, Tensor]:
            return loss(model, inputs, targets, factors)

        self._wanted, self._proven = wanted, True
        self.parameters = list(model.parameters())
        self.compiled, accelerated = False, accelerate(model)
        self.kernels: Kernels | None = None  # those in use on the CPU
        self._recorded: RecordedLoss | RecordedMembers | None = None
        if wanted != "off" and not accelerated:
            if use_kernels(model, kernels := load_kernels()) and kernels:
                self.kernels, self.compiled = kernels, True
                self._recorded = _recorded(
                    loss, model, side_by_side=model.dtype in kernels.multiplies
                )
            elif wanted == "on":
                raise TrainingError(
                    'training.compile = "on" needs a C compiler (gcc or clang); use "auto" or "off"'
                )
        # A recorded step gives all gradients at its end.
        self.sink = sink if self._recorded is None else None
        self._plain = self._call = self._whole = plain
        if self.sink is not None:
            assert layout is not None
            hooked(model, self.sink, layout)
            self._whole = tapped(loss, model, self.sink, layout)
        self.replayed = False
        self._calls: Counter[torch.Size] = Counter()
        if wanted != "off" and accelerated:
            self.replayed = self.sink is None and replays(wanted, device, model.plan, tokens)
            self._compile()

    def _compile(self) -> None:
        options: dict[str, Any] = {"mode": "reduce-overhead"} if self.replayed else {}
        if self.sink is not None:
            options = early()
        self._call, self._proven, self.compiled = one_graph(self._whole, **options), False, True

    def plain_backward(
        self, inputs: Tensor, targets: Tensor, factors: Mapping[str, Tensor] = NO_FACTORS
    ) -> None:
        """The loss's gradients, without compiling anything."""
        loss, _ = self._plain(inputs, targets, factors)
        loss.backward()  # type: ignore[no-untyped-call]

    def backward(
        self,
        inputs: Tensor,
        targets: Tensor,
        factors: Mapping[str, Tensor] = NO_FACTORS,
        weight: float = 1.0,
    ) -> Tensor:
        """Give the parameters, which have none, the gradient of `weight` times the loss.

        Returns the mean next-token nll.
        """
        if self._recorded is not None:
            recorded = self._recorded.backward(Batch(inputs, targets, factors, weight))
            if recorded is not None:
                return recorded
        if not self.replayed or self._calls[inputs.shape] >= TRIALS:
            return self._backward(inputs, targets, factors, weight)
        self._calls[inputs.shape] += 1
        try:
            return self._backward(inputs, targets, factors, weight)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            self._give_graphs_up(error)
        return self._backward(inputs, targets, factors, weight)

    def _backward(
        self, inputs: Tensor, targets: Tensor, factors: Mapping[str, Tensor], weight: float
    ) -> Tensor:
        if self.replayed:  # what the pass before gave has been used
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        loss, nll = self(inputs, targets, factors)
        (loss * weight if weight < 1 else loss).backward()  # type: ignore[no-untyped-call]
        return nll.detach()

    def _give_graphs_up(self, error: Exception) -> None:
        """Compile without CUDA graphs from here on."""
        reason = " ".join(str(error).split())[:200]
        warnings.warn(f"CUDA graphs failed, training goes on without: {reason}", stacklevel=3)
        for parameter in self.parameters:
            parameter.grad = None
        self.replayed = False
        self._compile()

    def __call__(
        self, inputs: Tensor, targets: Tensor, factors: Mapping[str, Tensor] = NO_FACTORS
    ) -> tuple[Tensor, Tensor]:
        """inputs and targets (B, T) int64 and dropout's factors (B, T, 1) by table, on the model's
        device.
        """
        if self._proven:
            return self._call(inputs, targets, factors)
        try:
            found = self._call(inputs, targets, factors)
        except Exception as error:
            if is_out_of_memory(error):
                raise torch.OutOfMemoryError(" ".join(str(error).split())[:300]) from error
            if self.replayed:  # the cause may be the graphs
                raise
            reason = " ".join(str(error).split())[:200]
            if self._wanted == "on":
                raise TrainingError(f'training.compile = "on" failed: {reason}') from error
            warnings.warn(
                f"compilation failed, training goes on without it: {reason}", stacklevel=2
            )
            self.compiled, self._call = False, self._plain
            found = self._plain(inputs, targets, factors)
        self._proven = True
        return found
