"""Published files import with their sizes inferred, and give the published logits."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from niblick.model import build_model
from niblick.exchange.foreign import import_state_dict

DATA = Path(__file__).parent / "data"
LOGITS_TOLERANCE = 1e-4
SIDECAR = ("model.context=1024", "model.attention.rope.train_length=1024")
CASES = {
    "token_shift": ("token-shift", ("model.attention.xsa_layers=[3,4]",)),
    "depth_recurrent": ("depth-recurrent", ()),
    "sidecar": ("sidecar", (*SIDECAR, "model.attention.xsa_layers=[3,4]")),
    "sidecar_long": ("sidecar", (*SIDECAR, 'model.attention.rope.dims="adaptive"')),
    "token_shift_int6_zlib": ("token-shift", ()),
    "depth_recurrent_int8_zlib": ("depth-recurrent", ()),
    "sidecar_int6_zstd": ("sidecar", SIDECAR),
}


def published(name: str, folder: Path) -> Path:
    """The published export, or for a set of plain weights the `.pt` file they amount to."""
    if (DATA / f"{name}.ptz").exists():
        return DATA / f"{name}.ptz"
    with np.load(DATA / f"{name}.npz") as file:
        state = {
            key.removeprefix("weight/"): torch.from_numpy(file[key])
            for key in file.files
            if key.startswith("weight/")
        }
    torch.save(state, folder / f"{name}.pt")
    return folder / f"{name}.pt"


@pytest.mark.parametrize("name", CASES)
def test_an_imported_file_gives_the_published_logits(name: str, tmp_path: Path) -> None:
    family, overrides = CASES[name]
    found = import_state_dict(published(name, tmp_path), family, overrides=overrides)
    with np.load(DATA / f"{name}.npz") as file:
        tokens, logits = torch.from_numpy(file["tokens"].astype(np.int64)), file["logits"]
        config = json.loads(str(file["config"]))
    with torch.no_grad():
        computed = build_model(found.recipe, found.tensors)(tokens)[0].numpy()
    assert np.abs(computed - logits).max() < LOGITS_TOLERANCE
    assert found.recipe.model.dim == config["model_dim"] and not found.recipe.model.document_mask
