"""onnxruntime runs the exported step of every family."""

from __future__ import annotations

import numpy as np
import pytest

from leaving import FAMILIES, saved
from niblick.exchange.onnx import onnx_model

pytestmark = pytest.mark.integration
runtime = pytest.importorskip("onnxruntime")


@pytest.mark.parametrize("family", FAMILIES)
def test_stepping_gives_our_logits_and_our_greedy_tokens(family, tmp_path):
    model = saved(tmp_path, family)
    data = onnx_model(model).SerializeToString()
    session = runtime.InferenceSession(data, providers=["CPUExecutionProvider"])
    kinds = {"int64": np.int64, "float": np.float32}
    state = {e.name: np.full((1, *e.shape), e.fill, kinds[e.kind]) for e in model.plan.state}
    prompt = model.tokenizer.encode_document("The river").tolist()
    tokens, rows = list(prompt), []
    for position in range(60):
        inputs = {"token": np.array([tokens[position]]), "position": np.array(position), **state}
        logits, *after = session.run(None, inputs)
        state = {entry.name: value for entry, value in zip(model.plan.state, after, strict=True)}
        rows.append(logits[0])
        if position + 1 == len(tokens):
            tokens.append(int(logits[0].argmax()))
    right = model.logits(tokens[:60], context=model.recipe.model.context)
    assert np.abs(np.stack(rows) - right).max() < 1e-4
    text = model.generate("The river", temperature=0, max_tokens=60 - len(prompt),
                          across_documents=True)  # fmt: skip
    assert model.tokenizer.decode(tokens[len(prompt) : 60]) == text
