"""What `niblick import` refuses, and how it says so."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
import zstandard

from niblick.artifact import open_file
from niblick.cli.foreign import import_command
from niblick.errors import ArtifactError, NiblickError
from niblick.exchange.foreign import import_state_dict
from niblick.model import LanguageModel
from niblick.plan import make_plan
from niblick.recipe import load_recipe

SMALL = {
    "token-shift": (
        "model.dim=64",
        "model.attention.heads=4",
        "model.attention.kv_heads=2",
        'model.stack.0.layers=["token-shift","window:128","full"]',
        "model.value_embedding.layers=[2]",
    ),
    "depth-recurrent": ("model.dim=48", "model.attention.heads=4", "model.attention.kv_heads=2"),
    "sidecar": (
        "model.dim=64",
        "model.attention.heads=4",
        "model.attention.kv_heads=2",
        'model.stack.0.layers=["full*4"]',
        "model.sidecar.layers=[2,3]",
    ),
}


def state(family: str) -> dict[str, torch.Tensor]:
    return dict(LanguageModel(load_recipe(family, SMALL[family]).model, seed=0).state_dict())


def write(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


@pytest.mark.parametrize("family", SMALL)
def test_sizes_are_inferred_from_the_tensors(family: str, tmp_path: Path) -> None:
    found = import_state_dict(write(tmp_path / "m.pt", state(family)), family)
    assert (
        make_plan(found.recipe.model).layers
        == make_plan(load_recipe(family, SMALL[family]).model).layers
    )
    assert found.tokenizer is not None and found.tokenizer.name == "fineweb-1024"


def test_an_unused_value_scale_is_dropped_and_a_compiled_prefix_understood(tmp_path: Path) -> None:
    content = {f"_orig_mod.{name}": tensor for name, tensor in state("token-shift").items()}
    content["ve_scales.0"] = torch.ones(1)
    found = import_state_dict(write(tmp_path / "m.pt", content), "token-shift")
    assert "ve_scales.0" not in found.tensors and "ve_scales.2" in found.tensors


def test_missing_extra_and_misshapen_tensors_are_refused_by_name(tmp_path: Path) -> None:
    for name, change in (
        ("blocks.1.attn.proj.weight", None),
        ("surprise.weight", torch.zeros(2)),
        ("blocks.0.mixer.mix_r", torch.zeros(5)),
        ("tok_emb.weight", None),
        ("blocks.0.mixer.W_r.weight", "text"),
    ):
        content: dict[str, Any] = state("token-shift")
        if change is None:
            del content[name]
        else:
            content[name] = change
        with pytest.raises(ArtifactError, match=name.replace(".", r"\.")):
            import_state_dict(write(tmp_path / "m.pt", content), "token-shift")


class Attack:
    """What a hostile pickle would do on loading."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.witness),)


def test_a_hostile_pickle_is_refused_and_does_not_run(tmp_path: Path) -> None:
    witness = tmp_path / "ran"
    raw = pickle.dumps({"tok_emb.weight": Attack(witness)}, protocol=2)
    (tmp_path / "plain.pt").write_bytes(raw)
    (tmp_path / "packed.ptz").write_bytes(zlib.compress(raw))
    buffer = io.BytesIO()
    torch.save({"tok_emb.weight": torch.zeros(2, 2)}, buffer)
    with (
        zipfile.ZipFile(io.BytesIO(buffer.getvalue())) as source,
        zipfile.ZipFile(tmp_path / "zip.pt", "w") as target,
    ):
        for item in source.namelist():
            target.writestr(item, raw if item.endswith("data.pkl") else source.read(item))
    for name in ("plain.pt", "packed.ptz", "zip.pt"):
        with pytest.raises(ArtifactError) as caught:
            import_state_dict(tmp_path / name, "token-shift")
        assert "\n" not in str(caught.value)
    assert not witness.exists()


def test_bombs_text_and_absent_files_are_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "bomb.ptz").write_bytes(zlib.compress(bytes(80_000_000), 9))
    (tmp_path / "bomb.zst").write_bytes(zstandard.compress(bytes(80_000_000)))
    (tmp_path / "text.pt").write_text("not a model")
    (tmp_path / "list.pt").write_bytes(b"")
    write(tmp_path / "other.pt", [1, 2])
    for name in ("bomb.ptz", "bomb.zst", "text.pt", "list.pt", "other.pt", "absent.pt"):
        with pytest.raises(ArtifactError) as caught:
            import_state_dict(tmp_path / name, "sidecar")
        assert "\n" not in str(caught.value)


def test_an_unknown_family_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(NiblickError, match="depth-recurrent, sidecar, token-shift"):
        import_state_dict(write(tmp_path / "m.pt", state("sidecar")), "gpt")


def test_the_command_writes_a_checkpoint_that_opens(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write(tmp_path / "m.pt", state("sidecar"))
    import_command(source, "sidecar", tmp_path / "c.safetensors", None, ["model.softcap=20"], False)
    loaded = open_file(tmp_path / "c.safetensors")
    assert loaded.recipe.model.softcap == 20 and loaded.tokenizer is not None
    assert "as sidecar" in capsys.readouterr().out
    with pytest.raises(ArtifactError, match=r"must end in \.safetensors"):
        import_command(source, "sidecar", tmp_path / "c.pt", None, None, False)
