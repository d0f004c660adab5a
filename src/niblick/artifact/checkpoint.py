"""Checkpoints: float weights in one safetensors file, with recipe and tokenizer.

Written atomically and verified on reading: the file carries a digest of all that it says, metadata
included, and every name, shape and value must fit the recipe inside. Files of format 1, whose
digest covers the tensors alone, are read too.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from niblick.codecs.quantized import Floats
from niblick.errors import ArtifactError, NiblickError
from niblick.files import parse_json, write_atomically
from niblick.limits import cut, quoted
from niblick.recipe import Recipe, recipe_from_dict, stored_values
from niblick.text.tokenizer import Tokenizer, load_tokenizer

WEIGHTS_FILE, FINAL_FILE = "model.safetensors", "final.safetensors"
_FORMAT, _OLD_FORMAT = 2, 1
# By safetensors' name of a type: its name in the digest, and how its bytes are read.
_TYPES = {
    "F64": ("torch.float64", "<f8"),
    "F32": ("torch.float32", "<f4"),
    "F16": ("torch.float16", "<f2"),
    "BF16": ("torch.bfloat16", "<u2"),
}


@dataclass(frozen=True)
class Checkpoint:
    """float32 arrays with the recipe, the tokenizer (None if unknown) and the writer's notes."""

    tensors: dict[str, Floats]
    recipe: Recipe
    tokenizer: Tokenizer | None
    meta: dict[str, Any]


def save_checkpoint(
    path: Path,
    *,
    tensors: Mapping[str, ArrayLike],
    recipe: Recipe,
    tokenizer: Tokenizer | None,
    meta: dict[str, Any],
) -> None:
    """Write `tensors`, stored as float32, to `path`, whole or not at all."""
    from safetensors.numpy import save

    arrays = {
        name: np.require(tensor, np.dtype("<f4"), "C") for name, tensor in sorted(tensors.items())
    }
    described: dict[str, Any] = {
        "format": _FORMAT,
        "recipe": stored_values(recipe),
        "meta": meta,
        "tokenizer": (
            base64.b64encode(tokenizer.to_bytes()).decode() if tokenizer is not None else None
        ),
    }
    stored = ((name, "F32", array.shape, array.tobytes()) for name, array in arrays.items())
    described["digest"] = _digest(described, stored)
    write_atomically(path, [save(arrays, {"niblick": json.dumps(described, sort_keys=True)})])


def read_checkpoint(path: Path) -> Checkpoint:
    """Read and verify the file at `path`; `ArtifactError` for one that is no sound checkpoint."""
    data, stored = _read(path)
    header = parse_json(data[8 : 8 + int.from_bytes(data[:8], "little")])
    described = _metadata(path, header.get("__metadata__") or {})
    _check_types(path, stored)
    parts = (
        (name, e["dtype"], tuple(e["shape"]), e["data"])
        for name, e in sorted(stored, key=itemgetter(0))
    )
    if _digest(described, parts) != described["digest"]:
        raise ArtifactError(
            f"checkpoint {str(path)!r} is damaged: its digest does not match its content"
        )
    return _checkpoint(path, described, {name: _floats(entry) for name, entry in stored})


def read_floats(path: Path) -> dict[str, Floats]:
    """The tensors of any safetensors file as float32, bfloat16 included; `ArtifactError` where it
    cannot be read or holds others.
    """
    _, stored = _read(path)
    _check_types(path, stored)
    return {name: _floats(entry) for name, entry in stored}


def _read(path: Path) -> tuple[bytes, list[tuple[str, dict[str, Any]]]]:
    """The bytes of a safetensors file, and its tensors as they are stored."""
    from safetensors import SafetensorError, deserialize

    try:
        data = path.read_bytes()
        return data, deserialize(data)  # type: ignore[no-untyped-call]
    except (OSError, SafetensorError) as error:
        said = cut(error, 120)
        raise ArtifactError(f"checkpoint {str(path)!r} cannot be read: {said}") from None


def _check_types(path: Path, stored: list[tuple[str, dict[str, Any]]]) -> None:
    for name, entry in stored:
        if entry["dtype"] not in _TYPES:
            raise ArtifactError(
                f"{str(path)!r} holds {quoted(name)} as {entry['dtype']}; float types are"
                f" {', '.join(_TYPES)}"
            )


def find_weights(path: Path) -> Path:
    """The weights file that a checkpoint file, `step-*` folder or `checkpoints` folder stands for.

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


def _metadata(path: Path, metadata: dict[str, str]) -> dict[str, Any]:
    """What the file says of itself, not yet interpreted."""
    if "niblick" not in metadata:
        raise ArtifactError(
            f"{str(path)!r} is a safetensors file but no checkpoint of niblick; see `niblick"
            " import`"
        )
    try:
        values = parse_json(metadata["niblick"])
        if values["format"] not in (_FORMAT, _OLD_FORMAT):
            raise ValueError(
                f"format {quoted(values['format'])}; this build reads {_OLD_FORMAT} and {_FORMAT}"
            )
        if not isinstance(values["digest"], str):
            raise TypeError(f"its digest is {quoted(values['digest'])}")
        return dict(values)
    except (ValueError, KeyError, TypeError) as error:
        raise _unreadable(path, error) from None


def _checkpoint(path: Path, values: dict[str, Any], tensors: dict[str, Floats]) -> Checkpoint:
    try:
        recipe, encoded = recipe_from_dict(values["recipe"]), values["tokenizer"]
        tokenizer = (
            None if encoded is None else load_tokenizer(base64.b64decode(encoded, validate=True))
        )
        return Checkpoint(tensors, recipe, tokenizer, dict(values["meta"]))
    except (ValueError, KeyError, TypeError, NiblickError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> ArtifactError:
    return ArtifactError(f"checkpoint {str(path)!r} has unreadable metadata: {cut(error, 150)}")


def _floats(entry: dict[str, Any]) -> Floats:
    values = np.frombuffer(entry["data"], dtype=_TYPES[entry["dtype"]][1]).reshape(entry["shape"])
    if entry["dtype"] == "BF16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32, copy=False)


def _digest(
    described: dict[str, Any], stored: Iterable[tuple[str, str, tuple[int, ...], bytes]]
) -> str:
    """SHA-256 over the metadata (since format 2) and names, types, shapes and contents, by name."""
    digest = hashlib.sha256()
    if described["format"] != _OLD_FORMAT:
        said = {key: value for key, value in described.items() if key != "digest"}
        digest.update(json.dumps(said, sort_keys=True).encode() + b"\n")
    for name, kind, shape, content in stored:
        digest.update(f"{name} {_TYPES[kind][0]} {shape}\n".encode())
        digest.update(content)
    return digest.hexdigest()
