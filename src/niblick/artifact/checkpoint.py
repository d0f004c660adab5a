"""Checkpoints: float weights under their published names in one safetensors file, with recipe and
tokenizer.

Written atomically and verified on reading: the file carries a digest of its tensors, and every
name, shape and value must fit the recipe inside.
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from niblick.artifact.atomic import write_file
from niblick.errors import ArtifactError, NiblickError
from niblick.recipe import Recipe, recipe_from_dict, stored_values
from niblick.text.tokenizer import Tokenizer, load_tokenizer

WEIGHTS_FILE, FINAL_FILE = "model.safetensors", "final.safetensors"
_FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """Float tensors with the recipe, the tokenizer (None if unknown) and what the writer noted."""

    tensors: dict[str, Tensor]
    recipe: Recipe
    tokenizer: Tokenizer | None
    meta: dict[str, Any]


def save_checkpoint(
    path: Path,
    *,
    tensors: dict[str, Tensor],
    recipe: Recipe,
    tokenizer: Tokenizer | None,
    meta: dict[str, Any],
) -> None:
    """Write `tensors` (any float dtype, any device) to `path`, whole or not at all."""
    kept = {
        name: tensor.detach().to("cpu").contiguous().clone()
        for name, tensor in sorted(tensors.items())
    }
    described = {
        "format": _FORMAT,
        "recipe": stored_values(recipe),
        "meta": meta,
        "digest": _digest(kept),
        "tokenizer": (
            base64.b64encode(tokenizer.to_bytes()).decode() if tokenizer is not None else None
        ),
    }
    write_file(path, save(kept, metadata={"niblick": json.dumps(described, sort_keys=True)}))


def read_checkpoint(path: Path) -> Checkpoint:
    """Read and verify the file at `path`; `ArtifactError` for one that is damaged or not a
    checkpoint.
    """
    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            described = _described(path, file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"checkpoint {str(path)!r} cannot be read: {error}") from None
    if _digest(tensors) != described.digest:
        raise ArtifactError(
            f"checkpoint {str(path)!r} is damaged: its digest does not match its tensors"
        )
    return Checkpoint(tensors, described.recipe, described.tokenizer, described.meta)


def find_weights(path: Path) -> Path:
    """The weights file that a checkpoint file, a `step-*` folder or a `checkpoints` folder stands
    for.

    A finished run's `final.safetensors` (averaged weights) comes before its newest step.
    """
    if path.is_file():
        return path
    for name in (FINAL_FILE, WEIGHTS_FILE):
        if (path / name).is_file():
            return path / name
    steps = sorted(entry for entry in path.glob("step-*") if (entry / WEIGHTS_FILE).is_file())
    if not steps:
        raise ArtifactError(
            f"no checkpoint in {str(path)!r}: neither {WEIGHTS_FILE} nor step-*/{WEIGHTS_FILE}"
        )
    return steps[-1] / WEIGHTS_FILE


@dataclass(frozen=True)
class _Described:
    """The metadata of a checkpoint, read and checked."""

    recipe: Recipe
    tokenizer: Tokenizer | None
    meta: dict[str, Any]
    digest: str


def _described(path: Path, metadata: dict[str, str]) -> _Described:
    if "niblick" not in metadata:
        raise ArtifactError(
            f"{str(path)!r} is a safetensors file but no checkpoint of niblick; see `niblick"
            " import`"
        )
    try:
        values = json.loads(metadata["niblick"])
        if values["format"] != _FORMAT:
            raise ArtifactError(
                f"checkpoint {str(path)!r} has format {values['format']!r}; this build reads"
                f" {_FORMAT}"
            )
        recipe = recipe_from_dict(values["recipe"])
        encoded = values["tokenizer"]
        tokenizer = (
            None if encoded is None else load_tokenizer(base64.b64decode(encoded, validate=True))
        )
        return _Described(recipe, tokenizer, dict(values["meta"]), str(values["digest"]))
    except (ValueError, KeyError, TypeError, RecursionError, NiblickError) as error:
        raise ArtifactError(f"checkpoint {str(path)!r} has unreadable metadata: {error}") from None


def _digest(tensors: dict[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and contents, in order of names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
