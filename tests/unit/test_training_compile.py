"""Which compiled form a run takes, and what it does where one fails."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from niblick.model import LanguageModel
from niblick.objective import training_loss
from niblick.plan import make_plan
from niblick.recipe import load_recipe
from niblick.training import compile as module
from niblick.training.compile import CompiledLoss, replays
from training_runs import tiny_recipe


@pytest.mark.parametrize(("name", "expected"), [("pocket", True), ("token-shift", False)])
def test_small_models_are_replayed_as_cuda_graphs_and_large_ones_are_not(name, expected) -> None:
    recipe = load_recipe(name)
    plan, tokens = make_plan(recipe.model), recipe.training.batch_tokens
    assert replays("auto", "cuda:0", plan, tokens) is expected
    assert replays("graphs", "cuda:0", plan, tokens)
    assert not replays("no-graphs", "cuda:0", plan, tokens)
    assert not replays("graphs", "cpu", plan, tokens), "there are none on a CPU"


def _compiler(fails: Callable[[dict[str, Any]], bool], made: list[dict[str, Any]]) -> Any:
    """A stand-in for the compiler, whose forms fail in their second call where `fails` says so."""

    def one_graph(call: Any, **options: Any) -> Any:
        made.append(options)
        calls: list[None] = []

        def form(*given: Any) -> Any:
            calls.append(None)
            if fails(options) and len(calls) > 1:
                raise RuntimeError("operation not permitted when stream is capturing")
            return call(*given)

        return form

    return one_graph


def _loss(monkeypatch: pytest.MonkeyPatch, wanted: Any, made: list[dict[str, Any]]) -> CompiledLoss:
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: None)
    monkeypatch.setattr(module, "accelerate", lambda model: True)
    monkeypatch.setattr(module, "one_graph", _compiler(lambda options: bool(options), made))
    model = LanguageModel(tiny_recipe().model, seed=1)
    return CompiledLoss(training_loss, model, wanted, "cuda:0", tokens=128)


TOKENS = torch.arange(33)[None] + 4


@pytest.mark.parametrize("wanted", ["auto", "on", "graphs"])
def test_cuda_graphs_that_fail_are_given_up_with_a_warning(wanted, monkeypatch) -> None:
    made: list[dict[str, Any]] = []
    loss = _loss(monkeypatch, wanted, made)
    first = loss.backward(TOKENS[:, :-1], TOKENS[:, 1:])
    assert loss.replayed
    for parameter in loss.parameters:
        parameter.grad = None
    with pytest.warns(UserWarning, match="CUDA graphs failed, training goes on without: operat"):
        second = loss.backward(TOKENS[:, :-1], TOKENS[:, 1:])
    assert torch.equal(first, second)
    assert loss.compiled and not loss.replayed
    assert made == [{"mode": "reduce-overhead"}, {}], "compiled all the same"


def test_graphs_that_run_out_of_memory_are_not_the_graphs_fault(monkeypatch) -> None:
    loss = _loss(monkeypatch, "auto", [])

    def full(*given: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(loss, "_call", full)
    with pytest.raises(torch.OutOfMemoryError):
        loss.backward(TOKENS[:, :-1], TOKENS[:, 1:])
    assert loss.replayed, "the same in smaller parts may fit"
