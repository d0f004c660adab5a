"""Parity on a CUDA device: attention, head, step, training, evaluation, sensitivities, generation.

Where there is none they run on a pretended one (`pretended_card`): without what its compilers make,
with all that the code does to be there.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from everything import batch, everything
from niblick import facade
from niblick.components.banded import reference_attention
from niblick.compression.calibration import Calibration
from niblick.compression.sensitivity import measure
from niblick.evaluation import EvaluationOptions
from niblick.evaluation.evaluate import evaluate_target, score_tokens
from niblick.model import LanguageModel
from niblick.model.accelerated import accelerate
from niblick.model.head import fused_head_loss
from niblick.model.lm import PLAIN
from niblick.objective import training_loss
from niblick.recipe import load_recipe
from niblick.runtime import World
from niblick.scoring.data import text_target
from niblick.training import train
from niblick.training.compile import CompiledLoss
from property.evaluators import make_model, make_tokens
from training_runs import noisy_recipe, tiny_dataset, tiny_recipe, with_section
from unit.evaluation_cases import CASES

DEVICE = "cuda:0"
pytestmark = pytest.mark.cuda
RUNS = {
    "noise": noisy_recipe(),
    "ensemble": with_section(tiny_recipe(), "model", members=2),
    "documents": with_section(
        tiny_recipe(
            averaging={"kind": "power"}, dropout={"bigram": 0.5}, muon={"neuron_beta": 0.95}
        ),
        "data",
        rows="documents",
    ),
}
TEXT = "The river runs down to the sea. " * 60


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("length", "span"), [(300, 40), (1024, 128), (130, 130), (7, 3)])
def test_attention_is_the_readable_one(dtype: torch.dtype, length: int, span: int) -> None:
    from niblick.model.flex import Attend

    first = torch.zeros(2, length, dtype=torch.int64, device=DEVICE)
    first[:, length // 2 :] = length // 2
    for limit in (None, first):
        generator = torch.Generator(DEVICE).manual_seed(0)
        made = [
            torch.randn(2, heads, length, 64, device=DEVICE, generator=generator).to(dtype)
            for heads in (4, 2, 2, 4)
        ]
        found = []
        for fast in (True, False):
            q, k, v = (t.clone().float() if not fast else t.clone() for t in made[:3])
            for t in (q, k, v):
                t.requires_grad_()
            if fast:
                out = Attend(limit)(q, k, v, span)
            else:
                wide = (t.repeat_interleave(2, dim=1) for t in (k, v))
                out = reference_attention(q, *wide, span, first=limit)
            (out.float() * made[3].float()).sum().backward()
            found.append([out.detach(), q.grad, k.grad, v.grad])
        for fast_, slow in zip(*found, strict=True):
            near = 2e-2 if dtype is torch.bfloat16 else 3e-3
            torch.testing.assert_close(fast_.float(), slow, rtol=near, atol=near)


def test_the_head_in_chunks_is_the_head() -> None:
    generator = torch.Generator(DEVICE).manual_seed(0)
    hidden = torch.randn(4, 100, 64, device=DEVICE, generator=generator)
    weight = torch.randn(1024, 64, device=DEVICE, generator=generator)
    targets = torch.randint(1024, (4, 100), device=DEVICE, generator=generator)
    found = []
    for form in (PLAIN.head_loss, lambda *given: fused_head_loss(*given, logits=1024 * 64)):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        loss = form(h, w, targets, 30.0)
        loss.backward()
        found.append((loss.detach(), h.grad, w.grad))
    for plain, fused in zip(*found, strict=True):
        torch.testing.assert_close(fused, plain, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "name", ["pocket", "token-shift-small", "sidecar-small", "depth-recurrent-small"]
)
def test_a_compiled_step_has_the_loss_and_the_gradients_of_the_cpu(name: str) -> None:
    recipe = load_recipe(name, ["model.document_attention=within"])
    tokens = torch.randint(1024, (2, 257), generator=torch.Generator().manual_seed(3))
    tokens[:, 100] = recipe.model.bos_id
    found = []
    for device in ("cpu", DEVICE):
        model = LanguageModel(recipe.model, seed=1).to(device)
        wanted = "off" if device == "cpu" else "on"
        loss = CompiledLoss(training_loss, model, wanted, device)
        inputs, targets = (t.contiguous().to(device) for t in (tokens[:, :-1], tokens[:, 1:]))
        value = loss.backward(inputs, targets)
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        found.append([value.cpu(), *(grad.cpu() for grad in grads)])
    assert len(found[0]) == len(found[1])
    for cpu, cuda in zip(*found, strict=True):
        torch.testing.assert_close(cuda, cpu, rtol=1e-2, atol=1e-4)


def test_passes_replayed_as_cuda_graphs_are_those_that_are_not() -> None:
    recipe = load_recipe("token-shift-small")
    generator = torch.Generator().manual_seed(3)
    batches = [torch.randint(1024, (2, 257), generator=generator).to(DEVICE) for _ in range(5)]
    found: list[list[torch.Tensor]] = []
    for wanted in ("no-graphs", "graphs"):
        model = LanguageModel(recipe.model, seed=1).to(DEVICE)
        loss = CompiledLoss(training_loss, model, wanted, DEVICE)
        assert loss.replayed is (wanted == "graphs")
        seen = []
        for tokens in batches:
            value = loss.backward(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
            grads = [p.grad for p in model.parameters() if p.grad is not None]
            seen += [value.clone(), *(grad.clone() for grad in grads)]
            model.zero_grad(set_to_none=True)
        assert loss.replayed is (wanted == "graphs"), "they were not given up"
        found.append(seen)
    for plain, replayed in zip(*found, strict=True):
        torch.testing.assert_close(replayed, plain, rtol=1e-3, atol=1e-5)


def test_training_follows_the_loss_of_the_cpu_in_whatever_micro_batches(tmp_path: Path) -> None:
    dataset = tiny_dataset(tmp_path / "shards")
    recipe = tiny_recipe(duration="8 steps", compile="auto")
    one = recipe.model.attention.model_copy(update={"heads": 1, "kv_heads": 1})  # 16 wide
    recipe = with_section(recipe, "model", attention=one)
    curves = []
    for device, micro in (("cpu", None), (DEVICE, None), (DEVICE, 32)):
        chosen = with_section(recipe, "training", micro_batch_tokens=micro)
        out = tmp_path / f"run-{len(curves)}"
        result = train(chosen, dataset, out, world=World(device=device))
        curves.append([bpb for _, bpb in result.validations])
    for curve in curves[1:]:
        torch.testing.assert_close(torch.tensor(curve), torch.tensor(curves[0]), atol=2e-2, rtol=0)


@pytest.mark.parametrize("mode", ["sliding", "streaming", "document", "chunked"])
@pytest.mark.parametrize(("precision", "near"), [("fp32", 1e-3), ("bf16", 2e-2)])
def test_a_score_is_that_of_the_cpu(mode: str, precision: str, near: float) -> None:
    model = facade.load("pocket")
    sizes = {"vocab_size": model.recipe.model.vocab_size, "bos_id": model.recipe.model.bos_id}
    target = text_target("text", [TEXT, TEXT[:300]], model.tokenizer, **sizes)
    scores = []
    for device, kind in (("cpu", "fp32"), (DEVICE, precision)):
        options = EvaluationOptions(mode=mode, context=256, precision=kind)
        here = model.torch().to(device)
        scores.append(evaluate_target(here, target, options=options, world=World()))
    assert scores[1].bpb == pytest.approx(scores[0].bpb, abs=near)


@pytest.mark.parametrize("case", CASES)
def test_every_mode_and_adaptation_scores_as_on_the_cpu(case: str) -> None:
    tokens, options = make_tokens([9, 40, 3, 25, 60]), replace(CASES[case], precision="fp32")
    found = [
        score_tokens(make_model("mixed").to(device), tokens, options, World())
        for device in ("cpu", DEVICE)
    ]
    np.testing.assert_allclose(found[1], found[0], atol=5e-3)


def test_every_kind_of_part_computes_what_it_does_on_the_cpu() -> None:
    found = []
    for device in ("cpu", DEVICE):
        model = everything().to(device)
        inputs, targets = (t.to(device) for t in batch(model))
        loss = CompiledLoss(training_loss, model, "off" if device == "cpu" else "on", device)
        value = loss.backward(inputs, targets)
        found.append([value, *(p.grad for p in model.parameters() if p.grad is not None)])
    for cpu, cuda in zip(*found, strict=True):
        torch.testing.assert_close(cuda.cpu(), cpu, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("kind", RUNS)
def test_a_run_ends_where_it_does_on_the_cpu_and_resumes(tmp_path: Path, kind: str) -> None:
    dataset, recipe = tiny_dataset(tmp_path / "shards"), RUNS[kind]
    curves = []
    for device in ("cpu", DEVICE):
        out, world = tmp_path / device.replace(":", ""), World(device=device)
        whole = train(recipe, dataset, out, world=world)
        for newest in list((out / "checkpoints").iterdir())[1:]:
            shutil.rmtree(newest)
        again = train(recipe, dataset, out, world=world, resume=True)
        assert again.steps == whole.steps
        assert [bpb for _, bpb in again.validations] == pytest.approx(
            [bpb for _, bpb in whole.validations], abs=1e-4
        )
        curves.append([bpb for _, bpb in whole.validations])
    assert curves[1] == pytest.approx(curves[0], abs=2e-2)


def test_sensitivities_are_those_of_the_cpu() -> None:
    model = facade.load("pocket")
    tokens = torch.randint(4096, (2, 64), generator=torch.Generator().manual_seed(0))
    found = [
        measure(model.torch(gradients=True).to(device), Calibration([tokens]))
        for device in ("cpu", DEVICE)
    ]
    for name, cpu in found[0].items():
        near = {"rtol": 0.3, "atol": 1e-3}  # a label drawn otherwise moves a sample
        torch.testing.assert_close(
            torch.from_numpy(found[1][name].rows).sum(), torch.from_numpy(cpu.rows).sum(), **near
        )


def test_generation_is_the_text_of_the_cpu() -> None:
    model = facade.load("pocket")
    prompt = model.tokenizer.encode_document("The river")
    texts = []
    for device in ("cpu", DEVICE):
        engine = model.open_engine(kind="torch", device=device)
        engine.read(0, prompt)
        tokens = [int(engine.logits(0).argmax())]
        for _ in range(20):
            engine.step([tokens[-1]])
            tokens.append(int(engine.logits(0).argmax()))
        texts.append(tokens)
    assert texts[0] == texts[1]


def test_a_model_on_the_device_is_accelerated() -> None:
    model = LanguageModel(load_recipe("pocket").model, seed=None).to(DEVICE)
    assert accelerate(model)
