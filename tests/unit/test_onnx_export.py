"""One step as an ONNX file gives the model's logits, by onnx's own reference implementation."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from leaving import FAMILIES, saved
from niblick.exchange.formats import export_model
from niblick.exchange.onnx import onnx_model

CLOSE = 1e-4


def stepped(run, plan, tokens):
    """Logits (T, B, V) of feeding tokens (B, T) one by one through `run(inputs)`."""
    kinds = {"int64": np.int64, "float": np.float32}
    state = {e.name: np.full((len(tokens), *e.shape), e.fill, kinds[e.kind]) for e in plan.state}
    found = []
    for position, token in enumerate(tokens.T):
        logits, *after = run({"token": token, "position": np.array(position), **state})
        state = {entry.name: value for entry, value in zip(plan.state, after, strict=True)}
        found.append(logits)
    return np.stack(found)


@pytest.mark.parametrize("within", ["across", "within"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_gives_the_models_logits(family, within, tmp_path):
    model = saved(tmp_path, family, f"model.document_attention={within}")
    tokens = np.random.default_rng(0).integers(0, 260, (2, 30))
    tokens[:, [0, 9]] = model.tokenizer.bos_id
    runner = ReferenceEvaluator(onnx_model(model))
    found = stepped(lambda inputs: runner.run(None, inputs), model.plan, tokens)
    language = model.torch()
    with torch.no_grad():
        right, _ = language(torch.from_numpy(tokens), language.empty_state(2))
    assert np.abs(found.transpose(1, 0, 2) - right.numpy()).max() < CLOSE


def test_the_file_says_how_its_state_starts(tmp_path):
    model = saved(tmp_path, "token-shift")
    out = tmp_path / "model.onnx"
    facts = export_model(model.path, "onnx", out)
    assert facts["bytes"] == out.stat().st_size
    said = {prop.key: prop.value for prop in onnx.load(out).metadata_props}
    assert '"bigram.last": -1' in said["niblick"]
