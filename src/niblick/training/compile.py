"""torch.compile as an option: used where it can work, left out cleanly where it cannot."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from niblick.errors import TrainingError
from niblick.runtime import find_compiler

Loss = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class CompiledLoss:
    """A loss function compiled at its first call; `compiled` says whether it is.

    "auto" compiles where a C++ compiler (CPU) or CUDA is at hand and falls back to the plain function, with a
    warning, when compilation fails; "on" raises `TrainingError` instead; "off" never compiles.
    """

    def __init__(self, plain: Loss, wanted: Literal["auto", "on", "off"], device: str) -> None:
        self._plain, self._wanted = plain, wanted
        able = device.startswith("cuda") or find_compiler() is not None
        if wanted == "on" and not able:
            raise TrainingError('training.compile = "on" needs a C++ compiler (g++ or clang++); use "auto" or "off"')
        self.compiled = wanted != "off" and able
        self._call: Loss = torch.compile(plain, dynamic=False) if self.compiled else plain
        self._proven = not self.compiled

    def __call__(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """(loss to minimise, mean next-token nll) of one micro-batch."""
        if self._proven:
            return self._call(inputs, targets)
        try:
            found = self._call(inputs, targets)
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            if self._wanted == "on":
                raise TrainingError(f'training.compile = "on" failed: {reason}') from error
            warnings.warn(f"compilation failed, training goes on without it: {reason}", stacklevel=2)
            self.compiled, self._call = False, self._plain
            found = self._plain(inputs, targets)
        self._proven = True
        return found
