"""How far each format's logits are from ours, and what a token costs there.

    python benchmarks/formats.py MODEL [--tokens 200]

Needs transformers and onnxruntime (requirements-integrations.lock). One thread each.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from transformers import AutoModelForCausalLM

import niblick
from niblick.exchange.formats import export_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--tokens", type=int, default=200)
    given = parser.parse_args()
    torch.set_num_threads(1)
    model = niblick.load(given.model)
    ids = model.tokenizer.encode_document("The history of the river is long. " * 80)
    ids = ids[: min(given.tokens, model.recipe.model.context)].astype(np.int64)
    right, found = model.logits(ids), {}
    engine = model.open_engine(threads=1)
    found["engine"] = timed(lambda: [engine.advance([0], [t], "last") for t in ids], len(ids))
    with tempfile.TemporaryDirectory() as folder:
        found["hf"] = through_transformers(given.model, Path(folder) / "hf", ids, right)
        found["onnx"] = through_onnx(model, Path(folder) / "model.onnx", ids, right)
    print(json.dumps(found, indent=1))


def timed(work, tokens: int) -> dict[str, float]:
    """Microseconds a token of the fastest of three passes."""
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return {"us_per_token": round(1e6 * min(seconds) / tokens, 1)}


@torch.no_grad()
def through_transformers(path, folder: Path, ids, right) -> dict[str, float]:
    facts = export_model(path, "hf", folder)
    other = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    off = float(np.abs(other(torch.from_numpy(ids)[None]).logits[0].numpy() - right).max())

    def step() -> None:
        cache = None
        for token in ids:
            cache = other(torch.tensor([[token]]), cache=cache, use_cache=True).cache

    return {"bytes": facts["bytes"], "largest_difference": off, **timed(step, len(ids))}


def through_onnx(model, out: Path, ids, right) -> dict[str, float]:
    facts = export_model(model.path, "onnx", out)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(out), options, providers=["CPUExecutionProvider"])
    kinds, rows = {"int64": np.int64, "float": np.float32}, []

    def step() -> None:
        rows.clear()
        state = {e.name: np.full((1, *e.shape), e.fill, kinds[e.kind]) for e in model.plan.state}
        for position, token in enumerate(ids):
            inputs = {"token": np.array([token]), "position": np.array(position), **state}
            logits, *after = session.run(None, inputs)
            state = {e.name: value for e, value in zip(model.plan.state, after, strict=True)}
            rows.append(logits[0])

    cost = timed(step, len(ids))
    off = float(np.abs(np.stack(rows) - right).max())
    return {"bytes": facts["bytes"], "largest_difference": off, **cost}


if __name__ == "__main__":
    main()
