"""The pretended device fails where a card would, and what is to wait for nothing does."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from niblick.evaluation.evaluate import score_tokens
from niblick.runtime import World
from niblick.training import train
from pretended_card import pretended
from property.evaluators import make_model, make_tokens
from training_runs import tiny_dataset, tiny_recipe
from unit.evaluation_cases import ADAPTATIONS, CASES

WORLD = World(device="cuda:0")


def test_devices_do_not_mix() -> None:
    with pretended() as waits:
        there, here = torch.ones(3, device="cuda"), torch.ones(3)
        for mixed in (
            lambda: there + here,
            lambda: here @ there,
            lambda: torch.cat([there, here]),
            lambda: here[torch.zeros(2, dtype=torch.int64, device="cuda")],
            lambda: here.add_(there),
        ):
            with pytest.raises(RuntimeError, match="same device"):
                mixed()
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()
        with pytest.raises(TypeError, match="numpy"):
            np.asarray(there)
        assert not waits
        assert there[torch.zeros(2, dtype=torch.int64)].device == torch.device("cuda:0")
        assert (2 * there + torch.tensor(1.0)).cpu().tolist() == [3.0] * 3
        assert float(there.sum()) == 3
    assert sum(waits.values()) == 2
    assert not torch.cuda.is_available() or torch.ones(1, device="cuda").device.index == 0


def test_gradients_and_parameters_stay_there() -> None:
    with pretended():
        layer = torch.nn.Linear(3, 2).to("cuda")
        layer(torch.ones(4, 3, device="cuda")).sum().backward()
        for parameter in layer.parameters():
            assert parameter.is_cuda
            assert parameter.grad is not None
            assert parameter.grad.is_cuda
        assert layer.weight.grad.cpu().tolist() == [[4.0] * 3] * 2
        parts = torch.zeros(6, device="cuda")
        layer.weight.data = parts.view(2, 3)
        with torch.no_grad():
            parts.add_(1)
        assert layer.weight.sum().item() == 6
        with pytest.raises(AssertionError):
            layer.weight.data = torch.zeros(2, 3)


def steps(tmp_path: Path, count: int) -> Counter[tuple[str, str]]:
    """What waits in a run of so many steps, with all that a step does but report."""
    recipe = tiny_recipe(
        duration=f"{count} steps",
        checkpoint_every="1000 steps",
        validation={"every": 0.0, "tokens": 512},
        clip=1.0,
        dropout={"bigram": 0.5},
        muon={"neuron_beta": 0.95},
        averaging={"kind": "ema"},
    )
    with pretended() as waits:
        train(recipe, tiny_dataset(tmp_path / "shards"), tmp_path / str(count), world=WORLD)
    return Counter(waits)


def test_a_step_waits_for_nothing(tmp_path: Path) -> None:
    few, many = steps(tmp_path, 4), steps(tmp_path, 9)
    assert many == few


@pytest.mark.parametrize("case", ["chunked", "sliding", "streaming", *ADAPTATIONS])
def test_an_evaluation_waits_at_its_end_alone(case: str) -> None:
    options, found = replace(CASES[case], precision="fp32"), []
    for documents in (3, 9):
        with pretended() as waits:
            model = make_model("mixed").to("cuda")
            waits.clear()
            score_tokens(model, make_tokens([40] * documents), options, WORLD)
        found.append(Counter(waits))
    assert found[0] == found[1]
    assert sum(found[0].values()) <= 5
