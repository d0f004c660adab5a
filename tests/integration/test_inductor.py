"""Inductor compiles the training step: on the CPU with the plain losses and gradients, and for CUDA
devices as far as machine code, which nothing here can run.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from everything import ACROSS, assert_a_plain_step
from niblick.components import Call
from niblick.model.accelerated import Accelerated
from niblick.model.equations import Equations
from niblick.model.graphs import one_graph
from niblick.optim import newton_schulz
from niblick.optim.adam import descend
from niblick.training import overlap

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not shutil.which("g++") and not shutil.which("clang++"),
                       reason="no C++ compiler"),
]  # fmt: skip


class WithoutFlex(Accelerated):
    """flex_attention has no backward on a CPU: attention as the equations have it."""

    def embed(self, call: Call) -> torch.Tensor:
        return Equations.embed(self, call)


@pytest.mark.parametrize("within", [False, True])
def test_inductor_gives_the_plain_loss_and_gradients_in_one_graph(within: bool) -> None:
    assert_a_plain_step([] if within else ACROSS, WithoutFlex(), one_graph)


def test_inductor_gives_the_plain_steps_of_muon_and_adam() -> None:
    torch.manual_seed(0)
    matrices = torch.randn(2, 32, 48)
    plain = newton_schulz(matrices, 5, torch.float32)
    compiled = one_graph(newton_schulz)(matrices, 5, torch.float32)
    torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-5)
    made = [torch.randn(1000) for _ in range(3)] + [torch.rand(1000)]
    numbers = torch.tensor([0.5, 0.01, 0.02, 0.99, 1.3])
    for form in (descend, one_graph(descend)):
        form(*(found := [t.clone() for t in made]), numbers, (0.9, 0.95), 1e-8)
        if form is descend:
            right = found
    for ours, theirs in zip(found, right, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


class Order:
    """The gradients that came, in their order."""

    def __init__(self) -> None:
        self.slots: list[int] = []

    def take(self, slot: int, gradient: torch.Tensor) -> None:
        self.slots.append(slot)


def test_inductor_calls_taps_early() -> None:
    """Of two maps the second's gradient is there before the first's is computed."""
    sink = Order()
    overlap._sinks[-7] = sink
    first, second = (torch.randn(8, 8, requires_grad=True) for _ in range(2))

    def call(x: torch.Tensor) -> torch.Tensor:
        a, b = (overlap._Tap.apply(w, n, -7) for n, w in enumerate((first, second)))
        return ((x @ a).relu() @ b).square().sum()

    one_graph(call, **overlap.early())(torch.randn(4, 8)).backward()
    assert sink.slots == [1, 0]


@pytest.mark.parametrize("capability", [80, 90])
def test_triton_compiles_a_step_for_cuda_without_a_card(capability: int) -> None:
    pytest.importorskip("triton")
    program = Path(__file__).parents[1] / "gpu_code.py"
    command = [sys.executable, str(program), str(capability)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    parts = json.loads(done.stdout)
    taken = parts.pop("taken")
    # Two of the four virtual layers share a block, whose gradients are whole late.
    assert taken[0] < 0.1 and taken[len(taken) // 2] < 0.85, "gradients leave as they are made"
    assert parts.keys() == {"step", "head", "newton_schulz", "adam"}
    assert all(size > 0 for part in parts.values() for size in part.values())
    attention = [name for name in parts["step"] if name.startswith("triton_tem")]
    assert {"backward" in name for name in attention} == {False, True}, "flex_attention's own"
    assert len(parts["adam"]) == 1, "a group's step is one kernel"
