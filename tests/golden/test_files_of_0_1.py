"""Files of version 0.1 still open, bit for bit, and its runs can be continued.

`data/v0.1` holds a run folder (codec int-zlib), a second artifact of its weights (codec rd) and the
shards it was trained on, all written by that version. The digests are those of the tensors that it
decoded.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from niblick.artifact import container, open_file, read_checkpoint
from niblick.codecs import QuantizedTensor, Tensors, dequantized
from niblick.compression.packing import pack
from niblick.data.dataset import open_dataset
from niblick.plan import Role
from niblick.recipe import load_recipe
from niblick.runtime import World
from niblick.scoring.score import read_score
from niblick.training import train

DATA = Path(__file__).parent / "data" / "v0.1"
RUN = DATA / "run"
FINAL, STEP = RUN / "checkpoints" / "final.safetensors", RUN / "checkpoints" / "step-00000012"
DIGESTS = {
    RUN: "b16ebc71457aa0850b9aa001ab6a1ee2c38964995f847dafce7d51efdd4e9a18",
    DATA / "rd.nib": "c9042c02b3e29f2b8156bc6933a8212cf9773b8b248870a8e7be4b8290d28f7d",
    FINAL: "e68843724401768af5059c78a4cb1c977334a1de76dddb6c7d07318aa8c5076c",
    STEP: "691cf3f21bdf84513efb5853d507e3366ae2187404af5df35870492a3ee9f317",
}


def digest(tensors: Tensors) -> str:
    """SHA-256 over names, shapes and float32 values, in order of names."""
    lines = []
    for name, tensor in sorted(tensors.items()):
        values = dequantized(tensor)
        lines.append(f"{name}{list(values.shape)}{hashlib.sha256(values.tobytes()).hexdigest()}")
    return hashlib.sha256("".join(lines).encode()).hexdigest()


@pytest.mark.parametrize("path", DIGESTS, ids=lambda path: str(path.name))
def test_a_model_decodes_to_the_bits_it_had(path: Path) -> None:
    opened = open_file(path)
    assert digest(opened.tensors) == DIGESTS[path]
    assert list(opened.tensors) == [p.name for p in opened.plan.exported]
    assert opened.recipe.name == "small" and opened.recipe.model.mtp.heads == 1
    assert opened.tokenizer is not None and opened.tokenizer.vocab_size == 320
    assert opened.kind == ("artifact" if path in (RUN, DATA / "rd.nib") else "checkpoint")


@pytest.mark.parametrize("path", [RUN, DATA / "rd.nib"], ids=["int-zlib", "rd"])
def test_an_artifacts_matrices_and_embeddings_stay_integers(path: Path) -> None:
    opened = open_file(path)
    for parameter in opened.plan.exported:
        tensor = opened.tensors[parameter.name]
        quantized = parameter.role in (Role.MATRIX, Role.EMBEDDING)
        assert isinstance(tensor, QuantizedTensor) == quantized, parameter.name
        if isinstance(tensor, QuantizedTensor):
            assert tensor.codes.dtype.kind == "i" and tensor.shape == parameter.shape


def test_every_file_opens_where_torch_is_not_installed() -> None:
    script = (
        "import sys; sys.modules['torch'] = None; from niblick.artifact import open_file;"
        " print([len(open_file(path).tensors) for path in sys.argv[1:]])"
    )
    command = [sys.executable, "-c", script, *map(str, DIGESTS)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.stdout.strip() == str([45] * len(DIGESTS)), run.stderr


def test_the_same_weights_give_the_same_payload(tmp_path: Path) -> None:
    found = read_checkpoint(FINAL)
    pack(found.tensors, found.recipe, found.tokenizer, tmp_path / "a.nib", codec="int-zlib")
    old, new = (container.read(path) for path in (RUN / "artifact.nib", tmp_path / "a.nib"))
    assert old.payload == new.payload and old.tokenizer == new.tokenizer


def test_the_tokenizer_of_a_dataset_and_of_its_models_are_one() -> None:
    opened = open_file(RUN)
    assert opened.tokenizer is not None
    assert opened.tokenizer.sha256 == open_dataset(DATA / "shards").tokenizer.sha256


def test_recipe_and_scores_are_read() -> None:
    assert load_recipe(RUN / "recipe.toml") == open_file(RUN).recipe
    for path in (RUN / "scores").iterdir():
        assert read_score(path).bpb == pytest.approx(0.6082, abs=2e-4)


def test_a_run_continues_from_its_checkpoint_to_the_weights_it_reached(tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(RUN, run)
    (run / "checkpoints" / "final.safetensors").unlink()
    recipe = load_recipe(run / "recipe.toml")
    result = train(recipe, open_dataset(DATA / "shards"), run, world=World(), resume=True)
    assert result.steps == 24 and not result.interrupted
    for name, tensor in read_checkpoint(FINAL).tensors.items():
        assert np.allclose(result.tensors[name], tensor, rtol=1e-3, atol=1e-4), name
