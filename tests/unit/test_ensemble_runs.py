"""Training, scoring and packing an ensemble: the guarantees of a single model hold."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from decoded import opened_model
from engines import tensors_of
from leaving import saved
from niblick.compression.packing import pack
from niblick.data.dataset import Dataset
from niblick.engine import open_engine
from niblick.errors import NiblickError
from niblick.evaluation import EvaluationOptions, evaluate
from niblick.evaluation.adaptation import trainable
from niblick.evaluation.evaluate import score_tokens
from niblick.exchange.formats import export_model
from niblick.model import LanguageModel, members_of, new_model
from niblick.model.graphs import one_graph
from niblick.model.kernels import load_kernels, use_kernels
from niblick.objective import training_loss
from niblick.optim import Layout
from niblick.recipe import Recipe
from niblick.runtime import World
from niblick.scoring.passes import engine_scorer
from niblick.scoring.techniques import techniques, used_techniques, without
from niblick.toolchain import ENGINE
from niblick.training import Progress, train
from niblick.training.compile import CompiledLoss
from niblick.training.recorded import Batch, RecordedLoss, RecordedMembers
from property.evaluators import BOS, CONTEXT, make_dataset, make_model, make_tokens
from training_runs import digest, run, tiny_dataset, tiny_recipe
from unit.evaluation_cases import ADAPTATIONS, CASES


def pair(members: int = 2, *, heads: int = 0, **training: object) -> Recipe:
    """The tiny recipe with so many members."""
    recipe = tiny_recipe(**training)
    changes = {"members": members, "mtp": recipe.model.mtp.model_copy(update={"heads": heads})}
    return recipe.model_copy(update={"model": recipe.model.model_copy(update=changes)})


def make_pair() -> LanguageModel:
    """Two members with every kind of memory."""
    return make_model(kind=new_model, members=2)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny_dataset(tmp_path_factory.mktemp("data") / "shards")


def stop_at(step: int):  # type: ignore[no-untyped-def]
    def report(progress: Progress) -> None:
        if progress.step == step and progress.validation_bpb is None:
            os.kill(os.getpid(), signal.SIGTERM)

    return report


@pytest.mark.parametrize("heads", [0, 1])
def test_a_resumed_run_ends_in_the_bits_of_an_unbroken_one(
    dataset: Dataset, tmp_path: Path, heads: int
) -> None:
    dropout = {"token": 0.1, "bigram": 0.5}
    recipe = pair(heads=heads, compile="auto", dropout=dropout, qat={"enabled": True, "start": 0.5})
    whole = run(recipe, dataset, tmp_path / "whole")
    first = train(recipe, dataset, tmp_path / "cut", world=World(), on_progress=stop_at(7))
    assert (first.interrupted, first.steps) == (signal.SIGTERM, 7)
    assert digest(run(recipe, dataset, tmp_path / "cut", resume=True)) == digest(whole)
    assert {name.split(".")[1] for name in whole.tensors} == {"0", "1"}


def test_micro_batches_and_plain_torch_give_the_same_run_to_rounding(
    dataset: Dataset, tmp_path: Path
) -> None:
    losses = []
    for name, options in {
        "a": {},
        "b": {"micro_batch_tokens": 32},
        "c": {"compile": "auto"},
    }.items():
        recipe = pair(duration="5 steps", **options)
        losses.append(run(recipe, dataset, tmp_path / name).tensors["members.1.tok_emb.weight"])
    for other in losses[1:]:
        assert torch.allclose(losses[0], other, atol=1e-4)


def test_the_first_member_learns_as_if_it_were_alone(dataset: Dataset, tmp_path: Path) -> None:
    still = {"duration": "4 steps", "clip": 0.0}  # the norm of all is clipped together
    both = run(pair(**still), dataset, tmp_path / "both").tensors
    alone = run(pair(1, **still), dataset, tmp_path / "alone").tensors
    for name, tensor in alone.items():
        assert torch.allclose(both[f"members.0.{name}"], tensor, atol=1e-5), name
        if tensor.dim() == 2:
            assert not torch.equal(both[f"members.1.{name}"], tensor)


def test_members_on_threads_give_the_bits_of_one_thread() -> None:
    kernels = load_kernels()
    if kernels is None:
        pytest.skip("no C compiler")
    threads, found = torch.get_num_threads(), {}
    ids = torch.randint(0, 260, (4, 33), generator=torch.Generator().manual_seed(0))
    batch = Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous(), {}, 1.0)
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(1)
            model = new_model(pair(3).model, seed=4)
            use_kernels(model, kernels)
            each = [
                RecordedLoss(lambda *given, m=member: training_loss(m, *given), member)
                for member in members_of(model)
            ]
            recorded = RecordedMembers(each, threads=count)
            for _ in range(3):
                nll = recorded.backward(batch)
            assert nll is not None
            found[count] = [
                nll,
                *(p.grad.clone() for p in model.parameters() if p.grad is not None),
            ]
    finally:
        torch.set_num_threads(threads)
    for count in (2, 3):
        assert all(torch.equal(a, b) for a, b in zip(found[1], found[count], strict=True))


def test_a_step_compiles_into_one_graph_of_all_members() -> None:
    model = new_model(pair().model)
    ids = torch.randint(0, 260, (2, 17), generator=torch.Generator().manual_seed(1))
    factors = {f"members.{i}.bigram": torch.full((2, 16, 1), 0.5 + i) for i in range(2)}
    given = (ids[:, :-1], ids[:, 1:], factors)
    found = []
    for loss in (training_loss, one_graph(training_loss, "eager")):
        value, nll = loss(model, *given)
        gradients = torch.autograd.grad(value, list(model.parameters()), allow_unused=True)
        found.append((nll, *(g for g in gradients if g is not None)))
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*found, strict=True))
    assert not CompiledLoss(training_loss, model, "off", "cpu").compiled


@pytest.mark.parametrize("codec", ["rd", "int-zlib"])
def test_one_artifact_holds_all_members(tmp_path: Path, codec: str) -> None:
    recipe = pair()
    model = new_model(recipe.model)
    tensors = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    path = tmp_path / "pair.nib"
    packed = pack(tensors, recipe, None, path, codec=codec, max_bytes=200_000)
    opened = opened_model(path)
    assert opened.state_dict().keys() == tensors.keys()
    assert sum(packed.ledger.parts.values()) == path.stat().st_size
    ids = torch.arange(4, 30)[None]
    with torch.no_grad():
        gap = (opened.logits(ids) - model.logits(ids)).abs().max()
    assert gap < 0.5


@pytest.mark.parametrize("mode", ["sliding", "document", "chunked", "streaming"])
def test_the_engine_scores_what_torch_does(tmp_path: Path, mode: str) -> None:
    model, data, options = make_pair(), make_dataset(tmp_path), CASES[mode]
    assert evaluate(model, data, split="validation", options=options, prove=True).valid
    tokens = make_tokens([20, 7, 150, 1, 12, 3])
    right = score_tokens(model, tokens, options, World())
    for kind, close in (("numpy", 1e-4), ("native", 1e-3)):
        if kind == "native" and ENGINE.obtain() is None:
            continue
        engine = open_engine(model.plan, tensors_of(model), slots=3, kind=kind)
        scorer = engine_scorer(engine, options, context=CONTEXT, bos_id=BOS)
        found = scorer(tokens.astype(np.int64), tokens[None])[0]
        np.testing.assert_allclose(found, right, atol=close)
        assert abs(found.mean() - right.mean()) < 1e-4


@pytest.mark.parametrize("name", ADAPTATIONS)
def test_every_adaptation_learns_and_proves_causal(tmp_path: Path, name: str) -> None:
    ttt, model = ADAPTATIONS[name], make_pair()
    data = make_dataset(tmp_path, (24, 9, 31, 1, 40))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    options = EvaluationOptions(mode=ttt.mode, ttt=ttt, batch_tokens=64)
    found = evaluate(model, data, split="validation", options=options, prove=True)
    assert found.valid and found.details["proof"]["cuts"] >= 4
    plain = EvaluationOptions(mode=ttt.mode, batch_tokens=64)
    right = score_tokens(model, data.tokens("validation"), plain, World()).mean()
    assert found.nats_per_token != right
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_freeze_without_a_member_covers_every_member() -> None:
    model = make_pair()
    names = {id(p): name for name, p in model.named_parameters()}

    def left(*freeze: str) -> set[str]:
        return {names[id(p)] for p in trainable(model, freeze)}

    every = left()
    assert every - left("tok_emb") == {f"members.{i}.tok_emb.weight" for i in range(2)}
    assert every - left("members.1.tok_emb") == {"members.1.tok_emb.weight"}
    assert len(left("blocks.0")) < len(every)


def test_it_leaves_as_a_page_and_not_as_gguf(tmp_path: Path) -> None:
    model = saved(tmp_path, "token-shift+members")
    assert model.recipe.model.members == 3 and "3 members of 11 layers" in repr(model)
    export_model(model.path, "html", tmp_path / "page.html")
    assert "3 members of 11 (" in (tmp_path / "page.html").read_text("utf-8")
    with pytest.raises(NiblickError, match="members: an ensemble of 3"):
        export_model(model.path, "gguf", tmp_path / "model.gguf")


def test_cards_name_the_ensemble_and_ablations_leave_it_out() -> None:
    recipe = pair()
    model = new_model(recipe.model)
    entries = techniques(recipe, model.plan)["architecture"]
    assert {"name": "ensemble, probabilities averaged", "members": 2} in entries
    assert "ensemble" in used_techniques(recipe)
    alone = without(recipe, "ensemble")
    assert alone.model.members == 1 and "ensemble" not in used_techniques(alone)
    assert Layout(model.plan.parameters, recipe.training)
