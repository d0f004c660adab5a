"""Measures the data pipeline and the tokenizers; `python benchmarks/data.py [tokenizers|wait|memory
...]`.

tokenizers: bytes per token on the development split of wiki-vital, bits per byte there under
trigrams of the training split's tokens (what a small model will make of a tokenizer, roughly), and
what the tokenizer costs inside an artifact. wait: the share of training time spent waiting for
batches, beside real forward and backward passes. memory: peak resident memory of a process that
draws batches, against the number of shards.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from niblick.data.corpus import load_corpus, training_part
from niblick.data.shards import HEADER_BYTES, MAGIC, VERSION, write_shard
from niblick.text.learning import TRAINED, train_tokenizer
from niblick.text.tokenizer import Tokenizer, load_tokenizer
from niblick.training.pipeline import Pipeline
from niblick.units import LN2

SHARD_TOKENS = 4_000_000
IntArray, BoolArray = NDArray[np.int64], NDArray[np.bool_]


def tokenizers() -> None:
    """Bytes per token and bits per byte on held-out text, for several vocabularies."""
    splits = training_part(load_corpus("wiki-vital"), development=True, share=1.0).splits
    size = sum(len(text.encode()) for text in splits["validation"])
    print("| tokenizer | lossless | bytes/token | trigrams | packed bytes | .model bytes | time |")
    print("|---|---|---|---|---|---|---|")

    def row(name: str, made: Tokenizer, seconds: float) -> None:
        training, held_out = (
            np.concatenate([made.encode_document(text) for text in splits[split]]).astype(np.int64)
            for split in ("train", "validation")
        )
        tokens = len(held_out) - len(splits["validation"])
        bits = trigram_nats(training, held_out, made.vocab_size) / LN2 / size
        lossless = "yes" if made.lossless else "no"
        sizes = f"{len(made.to_bytes()):,} | {len(made.to_file_bytes()):,}"
        figures = f"{size / tokens:.3f} | {bits:.4f} | {sizes} | {seconds:.1f} s"
        print(f"| {name} | {lossless} | {figures} |", flush=True)

    row("fineweb-1024", load_tokenizer("fineweb-1024"), 0.0)
    for vocab_size in (512, 1024, 2048, 4096, 6144, 8192):
        for name in TRAINED:
            began = time.perf_counter()
            made = train_tokenizer(splits["train"], vocab_size=vocab_size, **TRAINED[name])
            row(f"{name}, {vocab_size}", made, time.perf_counter() - began)


def trigram_nats(training: IntArray, held_out: IntArray, size: int) -> float:
    """Nats of `held_out` under the trigrams of `training`, interpolated with fewer tokens of
    context, each count discounted by 0.75 (Ney, Essen and Kneser 1994).
    """
    found = np.full(len(held_out), 1.0 / size)
    for order in (1, 2, 3):
        grams, counts = np.unique(_grams(training, order, size), return_counts=True)
        contexts, place = np.unique(grams // size, return_inverse=True)
        total, kinds = np.bincount(place, weights=counts), np.bincount(place)
        wanted = _grams(held_out, order, size)
        at, known = _find(grams, wanted)
        count = np.where(known, counts[at], 0)
        at, known = _find(contexts, wanted // size)
        mixed = np.maximum(count - 0.75, 0) + 0.75 * kinds[at] * found[order - 1 :]
        found[order - 1 :] = np.where(known, mixed / total[at], found[order - 1 :])
    return float(-np.log(found).sum())


def _grams(tokens: IntArray, order: int, size: int) -> IntArray:
    """Each token with the `order - 1` before it as one number."""
    parts = (tokens[order - 1 - i : len(tokens) - i] * size**i for i in range(order))
    return np.sum(list(parts), axis=0)


def _find(values: IntArray, wanted: IntArray) -> tuple[IntArray, BoolArray]:
    """Where each of `wanted` stands in sorted `values`, and whether it does."""
    at = np.minimum(np.searchsorted(values, wanted), len(values) - 1)
    return at, values[at] == wanted


def wait() -> None:
    """Wait share of a small language model's steps, one thread of computation and one of data."""
    import torch

    torch.set_num_threads(1)
    layers = [
        torch.nn.Embedding(1024, 256),
        *[torch.nn.Linear(256, 256) for _ in range(6)],
        torch.nn.Linear(256, 1024),
    ]
    model = torch.nn.Sequential(*layers)
    with tempfile.TemporaryDirectory() as folder:
        shards = [Path(folder) / f"{number}.bin" for number in range(64)]
        for number, path in enumerate(shards):
            write_shard(path, np.random.default_rng(number).integers(0, 1024, 100_000))
        for workers in (0, 1):
            pipeline = Pipeline(
                shards, sequence_length=256, batch_sequences=32, seed=0, workers=workers
            )
            pipeline.next()
            pipeline.wait_seconds, began = 0.0, time.perf_counter()
            for _ in range(60):
                inputs, targets = (torch.from_numpy(array) for array in pipeline.next())
                loss = torch.nn.functional.cross_entropy(
                    model(inputs).flatten(0, 1), targets.flatten()
                )
                loss.backward()  # type: ignore[no-untyped-call]
            spent = time.perf_counter() - began
            pipeline.close()
            print(
                f"{workers} workers: step {spent / 60 * 1000:.1f} ms for 8,192 tokens from up to 32"
                f" of 64 shards, waiting {pipeline.wait_seconds / 60 * 1000:.3f} ms ="
                f" {100 * pipeline.wait_seconds / spent:.3f} %"
            )


def _sparse_shard(path: Path) -> None:
    header = np.zeros(256, dtype="<i4")
    header[:3] = MAGIC, VERSION, SHARD_TOKENS
    with path.open("wb") as file:
        file.write(header.tobytes())
        file.truncate(HEADER_BYTES + 2 * SHARD_TOKENS)


def _draw(folder: Path) -> None:
    """Child process: draw batches, then report the peak resident memory in bytes."""
    pipeline = Pipeline(sorted(folder.iterdir()), sequence_length=1024, batch_sequences=64, seed=0)
    for _ in range(400):
        pipeline.next()
    pipeline.close()
    status = Path("/proc/self/status").read_text()
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    print(json.dumps({"peak": int(peak.split()[1]) * 1024}))


def memory() -> None:
    """Peak memory of a fresh process that draws 26 M tokens, against the number of shards (Linux:
    reads /proc).
    """
    for count in (1, 16, 64, 256, 1024):
        with tempfile.TemporaryDirectory() as folder:
            for number in range(count):
                _sparse_shard(Path(folder) / f"{number:04d}.bin")
            command = [sys.executable, __file__, "--draw", folder]
            result = json.loads(
                subprocess.run(command, capture_output=True, text=True, check=True).stdout
            )
        total = count * 2 * SHARD_TOKENS / 1e6
        print(
            f"{count:5} shards, {total:8,.0f} MB on disk: peak memory"
            f" {result['peak'] / 1e6:.1f} MB",
            flush=True,
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--draw"]:
        _draw(Path(sys.argv[2]))
    else:
        parts = {"tokenizers": tokenizers, "wait": wait, "memory": memory}
        for name in sys.argv[1:] or parts:
            print(f"## {name}")
            parts[name]()
