"""Checkpoints: one folder per kept step, written under another name, synced, then renamed; the last
two are kept.

`model.safetensors` holds the weights to export (any command reads it), `trainer.safetensors` the
flat buffers and `trainer.json` the counters that continue the run bit for bit, with the hashes of
both files and of itself.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from niblick.artifact.checkpoint import save_checkpoint
from niblick.errors import NiblickError, TrainingError
from niblick.files import parse_json, record
from niblick.limits import cut
from niblick.recipe import Recipe
from niblick.text.tokenizer import Tokenizer

MODEL, TRAINER, STATE = "model.safetensors", "trainer.safetensors", "trainer.json"
KEPT = 2


@dataclass(frozen=True, kw_only=True)
class TrainerState:
    """The counters of a run between two steps."""

    step: int
    tokens: int
    seconds: float
    step_seconds: float
    rounding: bool
    average_count: int
    average_sample: int
    data: dict[str, int]
    layout: str
    recipe: str
    validations: list[tuple[int, float]]
    threads: int = 0  # that the run began with; 0 in checkpoints of version 0.1


def checkpoint_name(step: int) -> str:
    """That of the folder of the checkpoint after `step` steps."""
    return f"step-{step:08d}"


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints in `folder`, oldest first."""
    return sorted(path for path in folder.glob("step-*") if path.is_dir())


def write_checkpoint(
    folder: Path,
    state: TrainerState,
    buffers: dict[str, Tensor],
    exported: dict[str, Tensor],
    recipe: Recipe,
    tokenizer: Tokenizer,
) -> Path:
    """Write `folder`/step-N whole or not at all, then drop all but the newest two; `TrainingError`
    on failure.
    """
    final = folder / checkpoint_name(state.step)
    temporary = folder / f".{final.name}.writing"
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        meta = {"step": state.step, "tokens": state.tokens, "seconds": state.seconds}
        save_checkpoint(
            temporary / MODEL, tensors=exported, recipe=recipe, tokenizer=tokenizer, meta=meta
        )
        save_file(buffers, temporary / TRAINER)
        _write_state(temporary, state)
        _sync(temporary)
        if final.exists():
            shutil.rmtree(final)
        temporary.rename(final)
        _sync_path(folder)
    except (OSError, SafetensorError, NiblickError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise TrainingError(
            f"cannot write checkpoint {str(final)!r}: {error}{_intact(folder)}"
        ) from None
    for old in list_checkpoints(folder)[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def read_checkpoint(folder: Path) -> tuple[TrainerState, dict[str, Tensor]]:
    """State and buffers of one checkpoint, verified by hash; `TrainingError` naming the one
    before it.
    """
    try:
        document: dict[str, Any] = parse_json((folder / STATE).read_bytes())
        hashes = document.pop("sha256")
        found = {name: _sha256(folder / name) for name in (MODEL, TRAINER)} | {
            STATE: _digest(document)
        }
        for name, digest in found.items():
            if hashes[name] != digest:
                raise TrainingError(f"{name} does not match its hash")
        return _state(document), load_file(folder / TRAINER)
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        SafetensorError,
        TrainingError,
    ) as error:
        raise TrainingError(
            f"checkpoint {str(folder)!r} is damaged ({cut(error, 120)}){_earlier(folder)}"
        ) from None


def _state(document: dict[str, Any]) -> TrainerState:
    document.setdefault("threads", 0)
    data = document.pop("data")
    if not all(type(value) is int for value in data.values()):
        raise ValueError("data holds something else than counts")
    validations = [(int(step), float(bpb)) for step, bpb in document.pop("validations")]
    last_sample = document["average_sample"]
    document["average_sample"] = max(last_sample, 0)  # -1 before the first
    state = record(TrainerState, document, data=data, validations=validations)
    return replace(state, average_sample=int(last_sample))


def _write_state(folder: Path, state: TrainerState) -> None:
    document = asdict(state)
    hashes = {name: _sha256(folder / name) for name in (MODEL, TRAINER)} | {
        STATE: _digest(document)
    }
    (folder / STATE).write_text(
        json.dumps({**document, "sha256": hashes}, indent=1) + "\n", "utf-8"
    )


def _earlier(folder: Path) -> str:
    before = [path for path in list_checkpoints(folder.parent) if path.name < folder.name]
    if not before:
        return "; there is no earlier one"
    return f"; remove it to resume from the one before it, {before[-1].name}"


def _intact(folder: Path) -> str:
    kept = list_checkpoints(folder)
    return f"; {kept[-1].name} is intact" if kept else ""


def _sync(folder: Path) -> None:
    for path in [*folder.iterdir(), folder]:
        _sync_path(path)


def _sync_path(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _digest(document: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
