"""The artifact file: it gives back what was packed and refuses everything else."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import pytest
import torch

from decoded import opened_model
from niblick.artifact import container, open_file
from niblick.artifact.sizes import artifact_sizes
from niblick.compression.packing import pack
from niblick.errors import ArtifactError, CapacityError, DataError
from niblick.model import LanguageModel, build_model
from niblick.plan import make_plan
from niblick.recipe import Recipe, recipe_from_dict
from niblick.text.tokenizer import load_tokenizer


def tiny(**changes: object) -> Recipe:
    model = {
        "vocab_size": 260,
        "dim": 8,
        "context": 16,
        "stack": [{"layers": ["token-shift", "full"]}],
        "attention": {"heads": 2, "kv_heads": 1, "rope": {"dims": 2}},
        "mlp": {"width": 1.0},
    }
    return recipe_from_dict(
        {"name": "tiny", "model": {**model, **changes}, "data": {"tokenizer": "bytes"}}
    )


def weights(recipe: Recipe, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    model = LanguageModel(recipe.model, seed=seed)
    return {
        name: tensor + 0.1 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in model.state_dict().items()
    }


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    recipe = tiny()
    pack(weights(recipe), recipe, load_tokenizer("bytes"), tmp_path / "a.nib", codec="int-zlib")
    return tmp_path / "a.nib"


def test_a_packed_model_gives_the_logits_of_its_decoded_tensors_bit_for_bit(tmp_path: Path) -> None:
    recipe = tiny()
    result = pack(
        weights(recipe), recipe, load_tokenizer("bytes"), tmp_path / "a.nib", codec="int-zlib"
    )
    loaded = open_file(tmp_path / "a.nib")
    tokens = torch.randint(0, 260, (2, 20), generator=torch.Generator().manual_seed(1))
    expected = build_model(recipe, result.tensors)(tokens)[0]
    assert torch.equal(build_model(loaded.recipe, loaded.tensors)(tokens)[0], expected)
    assert (
        loaded.kind == "artifact"
        and loaded.tokenizer is not None
        and loaded.tokenizer.kind == "bytes"
    )
    assert loaded.recipe.model == recipe.model


def test_the_ledger_sums_to_the_size_on_disk(tmp_path: Path) -> None:
    recipe = tiny()
    result = pack(
        weights(recipe), recipe, load_tokenizer("bytes"), tmp_path / "a.nib", codec="int-zlib"
    )
    document = result.ledger.to_json()
    assert (
        result.size
        == (tmp_path / "a.nib").stat().st_size
        == document["total"]
        == sum(document["parts"].values())
    )
    payload = (
        document["parts"]["symbols"] + document["parts"]["scales"] + document["parts"]["values"]
    )
    assert sum(row["bytes"] for row in document["tensors"].values()) == payload
    assert document["parameters"] == make_plan(recipe.model).parameter_count


def test_every_altered_byte_and_every_truncation_is_refused(packed: Path, tmp_path: Path) -> None:
    data = packed.read_bytes()
    victim = tmp_path / "v.nib"
    for position in range(len(data)):
        victim.write_bytes(
            data[:position] + bytes([data[position] ^ (1 + position % 255)]) + data[position + 1 :]
        )
        with pytest.raises(ArtifactError):
            container.read(victim)
    for length in range(0, len(data), 7):
        victim.write_bytes(data[:length])
        with pytest.raises(ArtifactError):
            open_file(victim)
    victim.write_bytes(data + b"\0")
    with pytest.raises(ArtifactError, match="where its lengths say"):
        open_file(victim)


def test_packing_is_deterministic(tmp_path: Path) -> None:
    recipe = tiny()
    for name in ("a.nib", "b.nib"):
        pack(weights(recipe), recipe, load_tokenizer("bytes"), tmp_path / name, codec="int-zlib")
    assert (tmp_path / "a.nib").read_bytes() == (tmp_path / "b.nib").read_bytes()


def test_a_cap_that_is_exceeded_names_the_excess_and_the_largest_tensors_and_writes_nothing(
    tmp_path: Path,
) -> None:
    recipe, tokenizer = tiny(), load_tokenizer("bytes")
    size = pack(weights(recipe), recipe, tokenizer, tmp_path / "a.nib", codec="int-zlib").size
    pack(weights(recipe), recipe, tokenizer, tmp_path / "b.nib", codec="int-zlib", max_bytes=size)
    with pytest.raises(CapacityError, match=r"by 1 B; largest tensors: tok_emb.weight"):
        pack(
            weights(recipe),
            recipe,
            tokenizer,
            tmp_path / "c.nib",
            codec="int-zlib",
            max_bytes=size - 1,
        )
    with pytest.raises(CapacityError, match=r"100 B of code exceeds the cap .* by 100 B"):
        pack(
            weights(recipe),
            recipe,
            tokenizer,
            tmp_path / "c.nib",
            codec="int-zlib",
            max_bytes=size,
            extra_bytes=100,
        )
    assert not (tmp_path / "c.nib").exists()


def test_training_only_heads_are_dropped(tmp_path: Path) -> None:
    recipe = tiny(mtp={"heads": 2})
    tensors = weights(recipe)
    assert "mtp_heads.0.weight" in tensors
    result = pack(tensors, recipe, load_tokenizer("bytes"), tmp_path / "a.nib", codec="int-zlib")
    assert not [name for name in result.tensors if name.startswith("mtp_heads")]
    assert not [
        name for name, _ in opened_model(tmp_path / "a.nib").named_parameters() if "mtp" in name
    ]


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 1e38])
def test_values_that_cannot_be_stored_are_refused_by_name(tmp_path: Path, value: float) -> None:
    recipe = tiny()
    for name in ("blocks.0.mixer.W_r.weight", "blocks.0.attn_scale"):
        tensors = weights(recipe)
        tensors[name].view(-1)[0] = value
        with pytest.raises(ArtifactError, match=name):
            pack(tensors, recipe, load_tokenizer("bytes"), tmp_path / "a.nib", codec="int-zlib")


def test_missing_extra_and_misshapen_tensors_are_refused_by_name(tmp_path: Path) -> None:
    recipe, out = tiny(), tmp_path / "a.nib"
    missing, extra, wrong = weights(recipe), weights(recipe), weights(recipe)
    del missing["tok_emb.weight"]
    extra["surprise"] = torch.zeros(3)
    wrong["tok_emb.weight"] = torch.zeros(3)
    for tensors, pattern in (
        (missing, "tok_emb.weight.*missing"),
        (extra, "surprise"),
        (wrong, r"shape \(3,\)"),
    ):
        with pytest.raises(ArtifactError, match=pattern):
            pack(tensors, recipe, load_tokenizer("bytes"), out, codec="int-zlib")


def test_the_bound_holds_and_a_text_file_is_refused_in_one_line(
    packed: Path, tmp_path: Path
) -> None:
    recipe = tiny()
    bound, estimate = artifact_sizes(recipe, make_plan(recipe.model))
    assert packed.stat().st_size <= bound and 0 < estimate <= bound
    (tmp_path / "t.txt").write_text("hello world")
    with pytest.raises(ArtifactError, match="not a niblick artifact") as caught:
        open_file(tmp_path / "t.txt")
    assert "\n" not in str(caught.value)


def hostile(tmp_path: Path, packed: Path, **changes: object) -> Path:
    """A file with valid lengths and checksum over a header with `changes`."""
    found = container.read(packed)
    header = {**found.header, **changes}
    path = tmp_path / "h.nib"
    path.write_bytes(container.build(header, found.tokenizer, found.payload))
    return path


def test_valid_checksums_over_nonsense_are_refused(packed: Path, tmp_path: Path) -> None:
    recipe = container.read(packed).header["recipe"]
    huge = json.loads(json.dumps(recipe))
    huge["model"]["dim"] = 1 << 20
    many = json.loads(json.dumps(recipe))
    many["model"]["stack"] = [
        {"name": f"s{i}", "loops": 64, "layers": ["full*256"]} for i in range(64)
    ]
    cases: list[dict[str, object]] = [
        {"recipe": huge},
        {"recipe": many},
        {"recipe": None},
        {"recipe": {}},
        {"recipe": {"model": []}},
        {"codec": "pickle"},
        {"codec": None},
        {"codec": ["x"]},
    ]
    for changes in cases:
        with pytest.raises(ArtifactError) as caught:
            open_file(hostile(tmp_path, packed, **changes))
        assert "\n" not in str(caught.value)


def test_damaged_payloads_behind_a_valid_checksum_are_refused(packed: Path, tmp_path: Path) -> None:
    found = container.read(packed)
    path = tmp_path / "h.nib"
    for payload in (
        b"",
        found.payload[:-1],
        found.payload + b"x",
        b"\xff" * 64,
        bytes(len(found.payload)),
    ):
        path.write_bytes(container.build(found.header, found.tokenizer, payload))
        with pytest.raises(ArtifactError):
            open_file(path)


def test_a_bomb_in_the_header_is_refused(packed: Path, tmp_path: Path) -> None:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = packer.compress(b'{"a":"' + b"0" * 30_000_000 + b'"}') + packer.flush()
    data = packed.read_bytes()
    body = container._PREFIX.pack(container.MAGIC, container.VERSION, len(bomb), 0, 0) + bomb
    (tmp_path / "h.nib").write_bytes(body + container._digest(body))
    assert len(data)
    with pytest.raises(ArtifactError, match="header"):
        open_file(tmp_path / "h.nib")


def test_a_path_without_permission_or_model_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no model at"):
        open_file(tmp_path / "absent")
    with pytest.raises(ArtifactError, match="no checkpoint in"):
        open_file(tmp_path)
    recipe = tiny()
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="cannot write"):
        pack(
            weights(recipe),
            recipe,
            load_tokenizer("bytes"),
            tmp_path / "file" / "a.nib",
            codec="int-zlib",
        )
