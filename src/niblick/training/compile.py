"""The compiled form of the loss: fused kernels on the CPU, torch.compile on CUDA, or plain torch.

Which of the two is a measurement (docs/performance.md): on the CPU torch.compile costs over a
minute of the budget and gains little, the kernels compile in seconds, once per machine.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor

from niblick.errors import TrainingError
from niblick.model import LanguageModel
from niblick.model.accelerated import accelerate
from niblick.model.graphs import one_graph
from niblick.model.kernels import Kernels, load_kernels, use_kernels
from niblick.model.lm import NO_FACTORS
from niblick.optim import Layout
from niblick.training.memory import is_out_of_memory
from niblick.training.overlap import Sink, tapped
from niblick.training.recorded import Batch, RecordedLoss

Loss = Callable[[LanguageModel, Tensor, Tensor, Mapping[str, Tensor]], tuple[Tensor, Tensor]]


class CompiledLoss:
    """(loss to minimise, mean next-token nll) of one micro-batch; `compiled` says whether a
    compiled form is in use. Where `sink` is kept, gradients of `layout` go to it.

    "auto" falls back to plain torch where there is no compiler or it fails (on CUDA with a
    warning), "on" raises `TrainingError` instead, "off" never compiles.
    """

    def __init__(
        self,
        loss: Loss,
        model: LanguageModel,
        wanted: Literal["auto", "on", "off"],
        device: str,
        layout: Layout | None = None,
        sink: Sink | None = None,
    ) -> None:
        def plain(
            inputs: Tensor, targets: Tensor, factors: Mapping[str, Tensor]
        ) -> tuple[Tensor, Tensor]:
            return loss(model, inputs, targets, factors)

        self._wanted, self._proven = wanted, True
        self.compiled, accelerated = False, accelerate(model)
        self.kernels: Kernels | None = None  # those in use on the CPU
        self._recorded: RecordedLoss | None = None
        if wanted != "off" and not accelerated:
            if use_kernels(model, kernels := load_kernels()):
                self.kernels, self.compiled = kernels, True
                self._recorded = RecordedLoss(plain, model)
            elif wanted == "on":
                raise TrainingError(
                    'training.compile = "on" needs a C compiler (gcc or clang); use "auto" or "off"'
                )
        # A recorded step gives all gradients at its end.
        self.sink = sink if self._recorded is None else None
        if self.sink is not None:
            assert layout is not None
            plain = tapped(loss, model, self.sink, layout)
        self._plain = self._call = plain
        if wanted != "off" and accelerated:
            self._call, self._proven, self.compiled = one_graph(plain), False, True

    def plain(
        self, inputs: Tensor, targets: Tensor, factors: Mapping[str, Tensor] = NO_FACTORS
    ) -> tuple[Tensor, Tensor]:
        """As a call, without compiling anything."""
        return self._plain(inputs, targets, factors)

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
        loss, nll = self(inputs, targets, factors)
        (loss * weight if weight < 1 else loss).backward()  # type: ignore[no-untyped-call]
        return nll.detach()

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
