"""Tiny runs for the tests of training: a few thousand bytes of text, a model of a few thousand
parameters.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from niblick.data.dataset import Dataset, open_dataset
from niblick.data.shards import write_shard
from niblick.recipe import Recipe, recipe_from_dict
from niblick.runtime import World
from niblick.text.tokenizer import load_tokenizer
from niblick.training import TrainResult, train

SENTENCE = "the small ship sails from one port to the next and the crew counts {} barrels of salt. "


def tiny_dataset(folder: Path) -> Dataset:
    """Two training shards and one validation shard of byte tokens in `folder`."""
    tokenizer = load_tokenizer("bytes")
    folder.mkdir(parents=True, exist_ok=True)
    for index, (split, documents) in enumerate((("train", 40), ("train", 30), ("val", 8))):
        texts = [SENTENCE.format(17 * index + n) * 2 for n in range(documents)]
        tokens = np.concatenate([tokenizer.encode_document(text) for text in texts])
        write_shard(folder / f"tiny_{split}_{index:06d}.bin", tokens)
    return open_dataset(folder, tokenizer)


def tiny_recipe(**training: object) -> Recipe:
    """Three small layers, one of each mixer; `training` replaces keys of the training section."""
    tokenizer = load_tokenizer("bytes")
    settings: dict[str, object] = {
        "duration": "12 steps",
        "sequence_length": 32,
        "batch_tokens": 128,
        "precision": "fp32",
        "threads": 1,
        "compile": "off",
        "checkpoint_every": "5 steps",
        "validation": {"every": 0.25, "tokens": 512},
        "muon": {"lr": 0.02, "momentum_warmup": "4 steps"},
        "adam": {"embedding_lr": 0.02, "scalar_lr": 0.02},
        "qat": {"start": 0.5},
    }
    model = {
        "vocab_size": tokenizer.vocab_size,
        "bos_id": tokenizer.bos_id,
        "dim": 16,
        "context": 32,
        "stack": [{"layers": ["token-shift", "window:8", "full"]}],
        "attention": {"heads": 2, "kv_heads": 1, "rope": {"dims": 4}},
        "bigram": {"enabled": True, "buckets": 64, "width": 8},
        "smear": {"enabled": True},
    }
    data = {"tokenizer": "bytes", "workers": 0}
    return recipe_from_dict(
        {"name": "tiny", "data": data, "model": model, "training": settings | training}
    )


def with_section(recipe: Recipe, name: str, **values: object) -> Recipe:
    """`recipe` with other values in one of its sections."""
    section = getattr(recipe, name).model_copy(update=values)
    return recipe.model_copy(update={name: section})


def noisy_recipe() -> Recipe:
    """From half of the run on under the errors of `rd` at a few bits a parameter."""
    recipe = tiny_recipe(qat={"enabled": True, "start": 0.5}, schedule={"warmdown": 1.0})
    return with_section(recipe, "artifact", codec="rd", max_bytes=3_500)


def run(recipe: Recipe, dataset: Dataset, out: Path, *, resume: bool = False) -> TrainResult:
    """Train in this process."""
    return train(recipe, dataset, out, world=World(), resume=resume)


def digest(result: TrainResult) -> str:
    """Hash of a result's weights: equal exactly where all bits are."""
    found = hashlib.sha256()
    for name, tensor in sorted(result.tensors.items()):
        found.update(name.encode() + tensor.numpy().tobytes())
    return found.hexdigest()
