"""Published files import with their sizes inferred, and give the published logits."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from niblick.exchange.foreign import Imported, import_state_dict
from niblick.model import LanguageModel, build_model
from parity import reference

DATA = Path(__file__).parent / "data"
LOGITS_TOLERANCE = 1e-4
# What the tensors do not tell and these small models have otherwise than the published ones.
CASES = {
    "token_shift": ("token-shift", ("model.attention.xsa_layers=[3,4]",)),
    "depth_recurrent": ("depth-recurrent", ()),
    "sidecar": ("sidecar", ("model.attention.xsa_layers=[3,4]",)),
    "sidecar_long": ("sidecar", ('model.attention.rope.dims="adaptive"',)),
    "token_shift_int6_zlib": ("token-shift", ()),
    "depth_recurrent_int8_zlib": ("depth-recurrent", ()),
    "sidecar_int6_zstd": ("sidecar", ()),
}


def weights(name: str) -> dict[str, torch.Tensor]:
    """The published tensors of a set of plain weights."""
    with np.load(DATA / f"{name}.npz") as file:
        return {
            key.removeprefix("weight/"): torch.from_numpy(file[key])
            for key in file.files
            if key.startswith("weight/")
        }


def published(name: str, folder: Path) -> Path:
    """The published export, or for a set of plain weights the `.pt` file they amount to."""
    if (DATA / f"{name}.ptz").exists():
        return DATA / f"{name}.ptz"
    torch.save(weights(name), folder / f"{name}.pt")
    return folder / f"{name}.pt"


def imported(name: str, folder: Path, *overrides: str) -> Imported:
    family, told = CASES[name]
    return import_state_dict(published(name, folder), family, overrides=(*told, *overrides))


def built(found: Imported) -> LanguageModel:
    return build_model(found.recipe, found.tensors).eval()


def slowly(found: Imported, ids: Sequence[int], context: int, **sections: Any) -> np.ndarray:
    """Logits of the float64 reference; `sections` replaces what the recipe says."""
    values = found.recipe.model.model_dump(mode="json") | sections
    tensors = {name: np.asarray(t, np.float64) for name, t in found.tensors.items()}
    return reference.logits(values, tensors, list(ids), context)


@pytest.mark.parametrize("name", CASES)
def test_an_imported_file_gives_the_published_logits(name: str, tmp_path: Path) -> None:
    found = imported(name, tmp_path)
    with np.load(DATA / f"{name}.npz") as file:
        tokens, logits = torch.from_numpy(file["tokens"].astype(np.int64)), file["logits"]
        config = json.loads(str(file["config"]))
    with torch.no_grad():
        computed = built(found)(tokens, context=tokens.shape[1])[0].numpy()
    assert np.abs(computed - logits).max() < LOGITS_TOLERANCE
    assert found.recipe.model.dim == config["model_dim"] and not found.recipe.model.document_mask


def test_a_sidecar_of_2048_tokens_turns_with_the_base_rescaled_from_1024(tmp_path: Path) -> None:
    found = imported("sidecar", tmp_path)
    assert found.recipe.model.context == 2048
    ids = torch.randint(0, 96, (1, 2048), generator=torch.Generator().manual_seed(1))
    attention = found.recipe.model.attention.model_dump(mode="json")
    attention["rope"] |= {"base": 10000 * 2 ** (16 / 14), "train_length": None}
    wanted = slowly(found, ids[0, :64].tolist(), 2048, attention=attention)
    with torch.no_grad():
        computed = built(found).logits(ids)[0, :64].numpy()  # as in training and evaluation
    assert np.abs(computed - wanted).max() < LOGITS_TOLERANCE


def test_the_last_of_an_odd_number_of_looped_layers_pops_no_skip(tmp_path: Path) -> None:
    state = weights("depth_recurrent")
    state = {name: t for name, t in state.items() if not name.startswith(("exit_", "vlayers.7"))}
    state["skip_weights"] = state["skip_weights"][:3]
    torch.save(state, tmp_path / "odd.pt")
    found = import_state_dict(tmp_path / "odd.pt", "depth-recurrent")
    layers = built(found).plan.layers
    assert [layer.index for layer in layers if layer.push] == [0, 1, 2]
    assert {x.index: x.pop for x in layers if x.pop is not None} == {3: 0, 4: 1, 5: 2}
    ids = torch.arange(24)[None] % 96
    with torch.no_grad():
        computed = built(found).logits(ids)[0].numpy()
    skips = {"enabled": True, "pop": "early"}
    assert np.abs(computed - slowly(found, ids[0].tolist(), 1024, skips=skips)).max() < 1e-4
    assert found.assumed["model.skips.pop"] == "early"


def test_beyond_the_training_length_the_full_layer_sees_one_key_more(tmp_path: Path) -> None:
    found = imported("token_shift", tmp_path, "model.context=32")
    ids = (torch.arange(48) * 7)[None] % 96
    stack = [{"name": "blocks", "loops": 1, "layers": []}]
    stack[0]["layers"] = ["token-shift", "window:128", "token-shift", "window:128", "window:32"]
    with torch.no_grad():
        computed = built(found)(ids, context=48)[0][0].numpy()
    assert np.abs(computed - slowly(found, ids[0].tolist(), 48, stack=stack)).max() < 1e-4
    stack[0]["layers"][-1] = "window:31"
    assert np.abs(computed - slowly(found, ids[0].tolist(), 48, stack=stack)).max() > 1e-2
