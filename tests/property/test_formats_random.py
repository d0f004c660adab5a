"""Whatever a recipe can name: an exported model of it gives our logits."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from engines import tensors_of
from niblick.exchange.hf import _layers
from niblick.exchange.onnx import onnx_model
from property.plans import model_recipes, scattered, tokens

CLOSE, LENGTH = 1e-4, 12


@settings(max_examples=6, deadline=None)
@given(model_recipes())
def test_an_onnx_step_of_any_model_gives_its_logits(recipe):
    from onnx.reference import ReferenceEvaluator

    ours, ids = scattered(recipe), tokens(LENGTH)
    exported = SimpleNamespace(plan=ours.plan, tensors=tensors_of(ours), sha256="")
    check_steps(ours, ids, ReferenceEvaluator(onnx_model(exported)))


@pytest.mark.integration
@settings(max_examples=100, deadline=None)
@given(model_recipes())
def test_onnxruntime_gives_the_logits_of_any_model(recipe):
    runtime = pytest.importorskip("onnxruntime")
    ours, ids = scattered(recipe), tokens(LENGTH)
    exported = SimpleNamespace(plan=ours.plan, tensors=tensors_of(ours), sha256="")
    data = onnx_model(exported).SerializeToString()
    check_steps(ours, ids, runtime.InferenceSession(data, providers=["CPUExecutionProvider"]))


def check_steps(ours, ids, session):
    kinds = {"int64": np.int64, "float": np.float32}
    state = {e.name: np.full((2, *e.shape), e.fill, kinds[e.kind]) for e in ours.plan.state}
    with torch.no_grad():
        right, _ = ours(ids, ours.empty_state(2))
    for at in range(LENGTH):
        inputs = {"token": ids[:, at].numpy(), "position": np.array(at), **state}
        logits, *after = session.run(None, inputs)
        assert np.abs(logits - right[:, at].numpy()).max() < CLOSE
        state = {entry.name: value for entry, value in zip(ours.plan.state, after, strict=True)}


@pytest.mark.integration
@settings(max_examples=150, deadline=None)
@given(model_recipes())
def test_the_code_for_transformers_gives_the_logits_of_any_model(recipe):
    """Whole, in pieces through its cache, and behind padding on the left."""
    pytest.importorskip("transformers")
    from niblick.exchange.hf.configuration_niblick import NiblickConfig
    from niblick.exchange.hf.layers_niblick import NiblickCache
    from niblick.exchange.hf.modeling_niblick import NiblickForCausalLM

    ours, ids = scattered(recipe), tokens(LENGTH)
    config = NiblickConfig(model=recipe.model_dump(mode="json"), layers=_layers(ours.plan))
    other = NiblickForCausalLM(config).eval()
    names = {parameter.name for parameter in ours.plan.exported}
    other.load_state_dict({k: v for k, v in ours.state_dict().items() if k in names})
    declared = max(LENGTH, recipe.context)

    def pieces(inputs, mask, *cuts):
        cache, ends = NiblickCache(declared), [*cuts, inputs.shape[1]]
        found = []
        for start, end in zip([0, *cuts], ends, strict=True):
            part = other(inputs[:, start:end], attention_mask=mask[:, :end], cache=cache)
            found.append(part.logits)
        return torch.cat(found, 1)

    with torch.no_grad():
        right = ours.logits(ids)
        assert (other(ids).logits - right).abs().max() < CLOSE
        assert (pieces(ids, torch.ones_like(ids), 5, 6, 7) - right).abs().max() < CLOSE
        padded = torch.cat([torch.full((2, 3), 3), ids], 1)
        mask = torch.cat([torch.zeros(2, 3), torch.ones(2, LENGTH)], 1).long()
        for cuts in ((), (7, 8)):
            assert (pieces(padded, mask, *cuts)[:, 3:] - right).abs().max() < CLOSE
