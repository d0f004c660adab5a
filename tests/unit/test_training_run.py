"""A run's results: reproducible, resumable to the bit, unmoved by validation, checkpoints or
micro-batches.
"""

from __future__ import annotations

import json
import math
import os
import signal
import threading
from pathlib import Path

import pytest
import torch

from decoded import opened_model
from niblick.codecs.base import QUANTIZED_ROLES
from niblick.compression import round_trip, rounding_specs
from niblick.data.dataset import Dataset
from niblick.model import LanguageModel
from niblick.optim import Layout, Optimizers
from niblick.plan import make_plan
from niblick.recipe.schema import QatRecipe
from niblick.report.run import told_if_slow
from niblick.runtime import World
from niblick.training import Progress, train
from niblick.training.checkpoint import list_checkpoints, read_checkpoint
from niblick.training.state import RunState
from niblick.training.weights import Weights
from training_runs import digest, noisy_recipe, run, tiny_dataset, tiny_recipe


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny_dataset(tmp_path_factory.mktemp("data") / "shards")


@pytest.fixture(scope="module")
def reference(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    out = tmp_path_factory.mktemp("reference") / "run"
    return digest(run(tiny_recipe(), dataset, out)), out


def _interrupt_at(step: int, number: signal.Signals = signal.SIGTERM):  # type: ignore[no-untyped-def]
    def report(progress: Progress) -> None:
        if progress.step == step and progress.validation_bpb is None:
            os.kill(os.getpid(), number)

    return report


@pytest.mark.parametrize("step", [1, 6, 11])
def test_an_interrupted_and_resumed_run_ends_in_the_same_bits(
    dataset: Dataset, reference: tuple[str, Path], tmp_path: Path, step: int
) -> None:
    out = tmp_path / "run"
    first = train(tiny_recipe(), dataset, out, world=World(), on_progress=_interrupt_at(step))
    assert (first.interrupted, first.steps) == (signal.SIGTERM, step)
    again = run(tiny_recipe(), dataset, out, resume=True)
    assert (again.interrupted, again.steps) == (0, 12)
    assert digest(again) == reference[0]


@pytest.mark.parametrize("step", [5, 9])
def test_a_run_under_the_codecs_errors_resumes_to_the_same_bits(
    dataset: Dataset, tmp_path: Path, step: int
) -> None:
    seen: list[Progress] = []
    unbroken = train(
        noisy_recipe(), dataset, tmp_path / "a", world=World(), on_progress=seen.append
    )
    assert {p.rounding for p in seen if p.step <= 6} == {False}
    assert {p.rounding for p in seen if p.step > 7} == {True}
    out = tmp_path / "b"
    train(noisy_recipe(), dataset, out, world=World(), on_progress=_interrupt_at(step))
    assert digest(run(noisy_recipe(), dataset, out, resume=True)) == digest(unbroken)
    plain = noisy_recipe().training.model_copy(update={"qat": QatRecipe(enabled=False)})
    other = run(noisy_recipe().model_copy(update={"training": plain}), dataset, tmp_path / "c")
    assert digest(other) != digest(unbroken)


def test_a_run_begun_when_no_codec_told_its_errors_goes_on_without(
    dataset: Dataset, tmp_path: Path
) -> None:
    train(noisy_recipe(), dataset, tmp_path / "run", world=World(), on_progress=_interrupt_at(9))
    newest = list_checkpoints(tmp_path / "run" / "checkpoints")[-1]
    for errors in (True, False):
        saved, buffers = read_checkpoint(newest)
        if not errors:
            del buffers["errors"]
        state = RunState(
            noisy_recipe(), dataset, world=World(), device="cpu", saved=(saved, buffers)
        )
        state.pipeline.close()
        assert (state.weights.errors is not None) is state.rounds is errors


def test_a_resumed_run_has_the_metrics_of_an_unbroken_one(
    dataset: Dataset, reference: tuple[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    train(tiny_recipe(), dataset, out, world=World(), on_progress=_interrupt_at(7))
    with (out / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "loss": 1.0}\n{"step": 10, "lo')
    run(tiny_recipe(), dataset, out, resume=True)
    assert _metrics(out) == _metrics(reference[1])


def test_metrics_tell_norm_rates_speed_and_memory_of_every_step(
    reference: tuple[str, Path],
) -> None:
    recipe = tiny_recipe().training
    rows = [row for row in _rows(reference[1]) if "loss" in row]
    assert [row["step"] for row in rows] == list(range(1, 13))
    for row in rows:
        assert row["grad_norm"] > 0 and row["resident_bytes"] > 1 << 20
        shares = (row["lr_matrix"] / recipe.muon.lr, row["lr_embedding"] / recipe.adam.embedding_lr)
        assert shares[0] == pytest.approx(shares[1]) and 0 < shares[0] <= 1
        assert row["bpb"] == pytest.approx(row["loss"] / math.log(2), rel=0.05)  # bytes and BOS
    assert all(row["tokens_per_second"] > 0 for row in rows[1:])
    assert {row["tokens"] for row in _rows(reference[1]) if "validation_bpb" in row}


def test_the_norm_in_the_metrics_is_the_gradients_before_clipping() -> None:
    parameters = make_plan(tiny_recipe().model).parameters
    layout = Layout(parameters, tiny_recipe().training)
    for limit in (0.0, 0.5):
        optimizers = Optimizers(
            layout, torch.zeros(layout.total), tiny_recipe().training, dtype=torch.float32
        )
        optimizers.gradients.fill_(2.0)
        optimizers.clip(limit)
        optimizers.step(0.25, 0.9)
        measured = optimizers.measures()
        assert measured["grad_norm"] == pytest.approx(2 * layout.total**0.5, rel=1e-5)
        assert measured["lr_matrix"] == 0.25 * tiny_recipe().training.muon.lr
    optimizers.gradients.fill_(float("inf"))
    optimizers.clip(0.0)
    assert optimizers.measures()["grad_norm"] is None


def _rows(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


_OF_THE_MACHINE = ("seconds", "tokens_per_second", "resident_bytes")


def _metrics(out: Path) -> list[dict[str, float]]:
    rows = _rows(out)
    return [{k: v for k, v in row.items() if k not in _OF_THE_MACHINE} for row in rows]


def test_resuming_a_finished_run_changes_nothing(dataset: Dataset, tmp_path: Path) -> None:
    first = run(tiny_recipe(), dataset, tmp_path / "run")
    assert digest(run(tiny_recipe(), dataset, tmp_path / "run", resume=True)) == digest(first)


def test_validation_and_checkpoints_leave_training_alone(
    dataset: Dataset, reference: tuple[str, Path], tmp_path: Path
) -> None:
    quiet = tiny_recipe(validation={"every": 0.0, "tokens": 512}, checkpoint_every="1000 steps")
    assert digest(run(quiet, dataset, tmp_path / "run")) == reference[0]


def test_micro_batches_give_the_gradient_of_the_whole_batch(
    dataset: Dataset, reference: tuple[str, Path], tmp_path: Path
) -> None:
    result = run(tiny_recipe(micro_batch_tokens=32), dataset, tmp_path / "run")
    whole = opened_model(reference[1]).state_dict()
    for name, tensor in result.tensors.items():
        torch.testing.assert_close(tensor, whole[name], atol=2e-4, rtol=1e-3)


def test_the_newest_checkpoint_is_the_model_that_training_returned(
    dataset: Dataset, tmp_path: Path
) -> None:
    result = run(tiny_recipe(), dataset, tmp_path / "run")
    loaded = opened_model(tmp_path / "run").state_dict()
    assert set(loaded) == set(result.tensors)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in result.tensors.items())
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 2


@pytest.mark.parametrize("duration", ["1 steps", "2 steps", "128 tokens", "200 tokens", "0.01s"])
@pytest.mark.parametrize("kind", ["ema", "swa"])
def test_rounding_and_averaging_happen_in_the_shortest_runs(
    dataset: Dataset, tmp_path: Path, duration: str, kind: str
) -> None:
    seen: list[Progress] = []
    recipe = tiny_recipe(duration=duration, averaging={"kind": kind})
    train(recipe, dataset, tmp_path / "run", world=World(), on_progress=seen.append)
    assert seen[-1].rounding
    numbers = json.loads(
        next((tmp_path / "run" / "checkpoints").glob("*/trainer.json")).read_text()
    )
    assert numbers["average_count"] >= 1
    assert numbers["validations"] or duration == "0.01s"


def test_rounded_weights_are_the_exports_and_their_gradients_reach_the_masters() -> None:
    recipe = tiny_recipe()
    model = LanguageModel(recipe.model, seed=3)
    layout = Layout(model.plan.parameters)
    specs = rounding_specs(recipe, model.plan)
    weights = Weights(model, layout, dtype=torch.float32, specs=specs)
    weights.master.add_(
        torch.randn(layout.total, generator=torch.Generator().manual_seed(0)) * 0.01
    )
    weights.refresh(rounded=True)
    masters = layout.views(weights.master)
    for name, parameter in model.named_parameters():
        expected = round_trip(masters[name], specs[name]) if name in specs else masters[name]
        assert torch.equal(parameter.detach(), expected), name
    tokens = torch.arange(64).view(2, 32)
    model.logits(tokens).square().sum().backward()
    slopes = {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    gathered = torch.full((layout.total,), 7.0)
    weights.collect(gathered, add=False)
    for name, view in layout.views(gathered).items():
        assert torch.equal(view, slopes.get(name, torch.zeros_like(view))), name


def test_the_codecs_errors_are_added_to_whole_rows_with_signs_of_their_own() -> None:
    recipe = tiny_recipe()
    model = LanguageModel(recipe.model, seed=3)
    layout = Layout(model.plan.parameters)
    weights = Weights(model, layout, dtype=torch.float32, specs={})
    weights.refresh(noise=(0, 1))
    assert torch.equal(weights.parameters[0], layout.slots[0].view(weights.master))
    weights.errors = torch.rand(layout.total, generator=torch.Generator().manual_seed(0)) + 0.5
    drawn = []
    for seed in ((0, 1), (0, 1), (0, 2)):
        weights.refresh(noise=seed)
        signs = []
        for slot, parameter in zip(layout.slots, weights.parameters, strict=True):
            added = (parameter.detach() - slot.view(weights.master)) / slot.view(weights.errors)
            if slot.role not in QUANTIZED_ROLES:
                assert not added.any(), slot.name
                continue
            rows = added.view(len(added), -1)
            torch.testing.assert_close(rows, rows[:, :1].sign().expand_as(rows))
            signs.append(rows[:, 0].sign())
        drawn.append(torch.cat(signs))
    assert torch.equal(drawn[0], drawn[1])
    for other in (drawn[0], drawn[2]):  # as many of each
        assert abs(float(other.mean())) < 0.2
    assert 0.3 < float((drawn[0] == drawn[2]).float().mean()) < 0.7
    weights.refresh()
    assert torch.equal(weights.parameters[0], layout.slots[0].view(weights.master))


def test_a_seconds_budget_ends_near_its_length_and_reaches_the_end_of_the_schedule(
    dataset: Dataset, tmp_path: Path
) -> None:
    seen: list[Progress] = []
    recipe = tiny_recipe(duration="1s", schedule={"warmdown": "100000 steps"})
    result = train(recipe, dataset, tmp_path / "run", world=World(), on_progress=seen.append)
    assert result.seconds >= 0.9  # a step that would end beyond the budget is not begun
    assert min(p.multiplier for p in seen) < 0.5


def test_what_takes_long_is_said_and_what_does_not_is_not(monkeypatch) -> None:
    monkeypatch.setattr("niblick.report.run._MOMENT", 0.01)
    said, heard = [], threading.Event()

    def say(message: str) -> None:
        said.append(message)
        heard.set()

    with told_if_slow(say, "long work"):
        assert heard.wait(10)
    monkeypatch.setattr("niblick.report.run._MOMENT", 60.0)
    with told_if_slow(say, "short work"):
        pass
    assert said == ["long work"]


def test_a_run_ends_at_its_most_passes_with_its_schedule_and_says_so(tmp_path: Path) -> None:
    data, said = tiny_dataset(tmp_path / "data"), list[str]()
    recipe = tiny_recipe(duration="400 steps", max_passes=2)
    result = train(recipe, data, tmp_path / "run", world=World(), say=said.append)
    text = data.token_count("train")
    assert 2 * text <= result.tokens < 2 * text + 128
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    rates = [row["multiplier"] for row in rows if "multiplier" in row]
    assert rates[0] == 1 and rates[-1] < 0.1
    (line,) = said
    assert line.startswith("2 passes over the text (training.max_passes)")
    longer = tiny_recipe(duration="3 steps", max_passes=2)
    train(longer, data, tmp_path / "short", world=World(), say=said.append)
    assert said == [line]
