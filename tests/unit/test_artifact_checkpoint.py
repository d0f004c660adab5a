"""Checkpoints give back what was saved and refuse what is damaged."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import deserialize
from safetensors.torch import save_file

from niblick.artifact import checkpoint, open_file, read_checkpoint, save_checkpoint
from niblick.errors import ArtifactError
from niblick.model import LanguageModel, build_model
from niblick.recipe import Recipe, recipe_from_dict
from niblick.text.tokenizer import load_tokenizer


def tiny() -> Recipe:
    model = {
        "vocab_size": 260,
        "dim": 8,
        "context": 16,
        "stack": [{"layers": ["full"]}],
        "attention": {"heads": 2, "kv_heads": 1, "rope": {"dims": 2}},
        "mlp": {"width": 1.0},
        "mtp": {"heads": 1},
    }
    return recipe_from_dict({"name": "tiny", "model": model})


def saved(path: Path, **meta: object) -> LanguageModel:
    model = LanguageModel(tiny().model, seed=3)
    save_checkpoint(
        path,
        tensors=model.state_dict(),
        recipe=tiny(),
        tokenizer=load_tokenizer("bytes"),
        meta=dict(meta),
    )
    return model


def test_a_checkpoint_gives_back_weights_recipe_tokenizer_and_notes(tmp_path: Path) -> None:
    model = saved(tmp_path / "c.safetensors", steps=7)
    found = read_checkpoint(tmp_path / "c.safetensors")
    assert all(
        torch.equal(torch.tensor(found.tensors[name]), tensor)
        for name, tensor in model.state_dict().items()
    )
    assert found.recipe == tiny() and found.meta == {"steps": 7}
    assert found.tokenizer is not None and found.tokenizer.sha256 == load_tokenizer("bytes").sha256
    loaded = open_file(tmp_path / "c.safetensors")
    tokens = torch.arange(12).view(1, -1)
    assert (
        torch.equal(build_model(loaded.recipe, loaded.tensors)(tokens)[0], model(tokens)[0])
        and loaded.kind == "checkpoint"
    )


def test_a_run_folder_opens_its_newest_checkpoint(tmp_path: Path) -> None:
    for step in (5, 10):
        saved(tmp_path / "checkpoints" / f"step-{step:08d}" / "model.safetensors", step=step)
    assert open_file(tmp_path).meta == {"step": 10}
    assert open_file(tmp_path / "checkpoints").meta == {"step": 10}
    assert open_file(tmp_path / "checkpoints" / "step-00000005").meta == {"step": 5}


def test_altered_and_truncated_checkpoints_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    saved(path)
    data = path.read_bytes()
    for position in [*range(8, len(data), 997), len(data) - 1]:
        path.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
        with pytest.raises(ArtifactError):
            read_checkpoint(path)
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ArtifactError):
        read_checkpoint(path)


def test_safetensors_from_elsewhere_are_told_apart(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2)}, str(tmp_path / "c.safetensors"))
    with pytest.raises(ArtifactError, match="no checkpoint of niblick"):
        open_file(tmp_path / "c.safetensors")


def test_saving_twice_gives_equal_bytes(tmp_path: Path) -> None:
    saved(tmp_path / "a.safetensors", n=1)
    saved(tmp_path / "b.safetensors", n=1)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_checkpoints_of_other_float_types_are_read_as_float32(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    tensors = {
        name: t.to(dtype) for name, t in LanguageModel(tiny().model, seed=3).state_dict().items()
    }
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    described = {
        "format": 1,
        "recipe": tiny().model_dump(mode="json"),
        "meta": {},
        "digest": digest.hexdigest(),
        "tokenizer": None,
    }
    path = tmp_path / "c.safetensors"
    save_file(tensors, str(path), metadata={"niblick": json.dumps(described)})
    found = read_checkpoint(path).tensors
    for name, tensor in tensors.items():
        assert found[name].dtype == np.float32
        assert torch.equal(torch.tensor(found[name]), tensor.float()), name


def test_every_bit_of_the_metadata_is_covered_by_the_digest(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    saved(path, steps=7)
    data = path.read_bytes()
    for text in (b"context", b"vocab_size", b"bos_id", b"steps", b"slope", b"nesterov"):
        at = data.index(text)
        for position in range(at, at + len(text) + 6):
            for bit in (1, 2, 4, 16):
                changed = bytes([data[position] ^ bit])
                path.write_bytes(data[:position] + changed + data[position + 1 :])
                with pytest.raises(ArtifactError):
                    read_checkpoint(path)


def test_metadata_under_a_digest_that_fits_are_still_one_short_line(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    saved(path)
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    said = json.loads(header["__metadata__"]["niblick"])
    stored = deserialize(data)
    parts = [(name, e["dtype"], tuple(e["shape"]), e["data"]) for name, e in sorted(stored)]
    for change in (
        {"recipe": []},
        {"recipe": {**said["recipe"], "name": "x" * 60_000}},
        {"recipe": {"model": "y" * 60_000}},
        {"tokenizer": 5},
        {"tokenizer": "z" * 60_000},
        {"meta": 7},
        {"format": "f" * 60_000},
        {"format": 3},
    ):
        told = {key: value for key, value in {**said, **change}.items() if key != "digest"}
        told["digest"] = checkpoint._digest(told, parts)
        header["__metadata__"]["niblick"] = json.dumps(told)
        text = json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
        with pytest.raises(ArtifactError, match="metadata") as caught:
            read_checkpoint(path)
        assert len(str(caught.value)) <= 200 + len(str(path))
        assert str(caught.value).isprintable()
