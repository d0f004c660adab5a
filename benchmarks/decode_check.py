"""Does the native engine say what the reference model says? For `benchmarks/decode.py --check PATH
[--text FILE]`.

Both engines read the same prompt and the same greedy tokens, the reference model's, so that a
difference of one token does not end the comparison: reported are the first token on which they
differ, how many do, and how far apart the reference's two best logits lie there. With a text (a
token shard, or plain text for the model's own tokenizer), bits per byte of both over it, token by
token in the native engine and in parallel in the reference model.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch

import niblick
from niblick import Model
from niblick.data.shards import open_shard
from niblick.engine import GREEDY, Engine

CHUNK = 512


def check(path: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Everything about one artifact, checkpoint or run directory."""
    torch.set_num_threads(options.threads)
    loaded = niblick.load(path)
    native = loaded.open_engine(threads=options.threads, kind="native")
    bos = [loaded.recipe.model.bos_id]
    prompt = [*bos, *loaded.tokenizer.encode("The river")] if loaded.has_tokenizer else bos
    found = {
        "model": str(path),
        "greedy": greedy(native, loaded.open_engine(kind="torch"), prompt, options.check_tokens),
    }
    if options.text:
        ids = read_text(options.text, loaded)[: options.text_tokens]
        found["text"] = text_bits(native, loaded, ids)
    return found


def read_text(path: Path, loaded: Model) -> np.ndarray:
    """Token ids of a shard or of a plain text."""
    if path.suffix == ".bin":
        return np.asarray(open_shard(path), dtype=np.int64)
    return np.asarray(
        loaded.tokenizer.encode_document(path.read_text(encoding="utf-8")), dtype=np.int64
    )


def greedy(native: Engine, reference: Engine, prompt: list[int], count: int) -> dict[str, Any]:
    """Greedy choices of both engines after the reference's text."""
    differ, off = [], []
    for engine in (native, reference):
        engine.read(0, prompt)
    for place in range(count):
        right = reference.logits(0)
        second, best = np.sort(right)[-2:]
        off.append(float(np.abs(native.logits(0) - right).max()))
        token = reference.choose(0, GREEDY, 0)
        if native.choose(0, GREEDY, 0) != token:
            differ.append((place, float(best - second)))
        for engine in (native, reference):
            engine.step([token])
    return {
        "tokens": count,
        "differ": len(differ),
        "first": differ[0][0] if differ else None,
        "gap_there": differ[0][1] if differ else None,
        "widest_gap": max((gap for _, gap in differ), default=None),
        "median_logit_error": float(np.median(off)),
        "worst_logit_error": max(off),
    }


@torch.inference_mode()
def text_bits(native: Engine, loaded: Model, ids: np.ndarray) -> dict[str, Any]:
    """Bits per byte (per token without a tokenizer) of ids[1:] after ids[0], by both."""
    model = loaded.torch()
    rows, state = [], model.empty_state()
    for start in range(0, len(ids) - 1, CHUNK):
        part = torch.from_numpy(ids[start : min(start + CHUNK, len(ids) - 1)])[None]
        hidden, state = model.hidden(part, state, keep=True)
        rows.append(model.head(hidden)[0].double())
    right = torch.cat(rows)
    native.read(0, ids[:1])
    found = []
    for token in ids[1:].tolist():
        found.append(torch.from_numpy(native.logits(0).copy()).double())
        native.step([token])
    own = torch.stack(found)
    wanted = torch.from_numpy(ids[1:])
    bits = [
        torch.nn.functional.cross_entropy(x, wanted, reduction="sum").item() / np.log(2)
        for x in (own, right)
    ]
    count = (
        len(loaded.tokenizer.decode_bytes(ids.tolist())) if loaded.has_tokenizer else len(ids) - 1
    )
    off = (own - right).abs().amax(1)
    return {
        "tokens": len(ids) - 1,
        "bytes": count,
        "native_bits": bits[0] / count,
        "reference_bits": bits[1] / count,
        "median_logit_error": off.median().item(),
        "worst_logit_error": off.max().item(),
    }


def show(found: dict[str, Any]) -> None:
    """Lines of what `check` found."""
    row = found["greedy"]
    same = row["first"] is None
    print(
        f"{found['model']}: greedy, {row['tokens']:,} tokens: "
        + (
            "all equal"
            if same
            else f"{row['differ']} differ, first token {row['first']:,} (best two logits "
        )
        + ("" if same else f"{row['gap_there']:.1e} apart there, {row['widest_gap']:.1e} at most)")
        + f"; logits off by {row['median_logit_error']:.1e} in the median token,"
        f" {row['worst_logit_error']:.1e} in the worst"
    )
    if "text" in found:
        row = found["text"]
        print(
            f"text, {row['tokens']:,} tokens, {row['bytes']:,} bytes: {row['native_bits']:.7f} bits"
            f" per byte, reference {row['reference_bits']:.7f}"
            f" ({row['native_bits'] - row['reference_bits']:+.1e}); logits off by"
            f" {row['median_logit_error']:.1e} in the median token, {row['worst_logit_error']:.1e}"
            " in the worst"
        )
