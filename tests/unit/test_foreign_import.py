"""What `niblick import` reads, assumes and refuses, and how it says so."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zstandard

from niblick.artifact import open_file
from niblick.cli.foreign import import_command
from niblick.errors import ArtifactError, NiblickError
from niblick.exchange.foreign import import_state_dict
from niblick.model import LanguageModel, build_model
from niblick.plan import make_plan
from niblick.recipe import load_recipe

SMALL = {
    "token-shift": (
        "model.dim=64",
        "model.attention.heads=4",
        "model.attention.kv_heads=2",
        'model.stack.0.layers=["token-shift","window:128","window:1024"]',
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


def state(family: str, *overrides: str) -> dict[str, torch.Tensor]:
    recipe = load_recipe(family, (*SMALL[family], *overrides))
    return dict(LanguageModel(recipe.model, seed=0).state_dict())


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
    assert list(found.ignored) == ["ve_scales.0"]


def logits(model: LanguageModel) -> torch.Tensor:
    with torch.no_grad():
        return model.eval().logits((torch.arange(20) * 11)[None] % 64)


NO_VALUES = ("model.value_embedding.enabled=false", "model.value_embedding.layers=[]")
# name -> family, what the checkpoint's model has otherwise, tensors that it holds on top
KINDS: dict[str, tuple[str, tuple[str, ...], dict[str, tuple[int, ...]]]] = {
    "a bigram table as wide as the model": (
        "sidecar",
        ("model.bigram.width=64", "model.bigram.projection=false"),
        {},
    ),
    "unused value embeddings": (
        "token-shift",
        NO_VALUES,
        {"ve_embed.weight": (1024, 16), "ve_proj.weight": (32, 16), "ve_scales.0": (1,)},
    ),
    "no attention layer": (
        "token-shift",
        (*NO_VALUES, 'model.stack.0.layers=["token-shift*3"]'),
        {"ve_embed.weight": (1024, 16), "ve_proj.weight": (32, 16)},
    ),
    "no entry block": (
        "depth-recurrent",
        (
            'model.stack=[{name="shared_blocks",loops=3,layers=["full*2"]},'
            '{name="exit_blocks",layers=["full"]}]',
        ),
        {},
    ),
    "neither entry nor exit": (
        "depth-recurrent",
        ('model.stack=[{name="shared_blocks",loops=2,layers=["full*2"]}]',),
        {},
    ),
    "no shared block": (
        "depth-recurrent",
        (
            'model.stack=[{name="entry_blocks",layers=["full*2"]},'
            '{name="exit_blocks",layers=["full"]}]',
        ),
        {},
    ),
    "an untied head": ("sidecar", ("model.tied=false",), {"mtp_heads.0.weight": (1024, 64)}),
    "an untied head over loops": ("depth-recurrent", ("model.tied=false",), {}),
    "no gains, no skips, no mix": (
        "sidecar",
        (
            "model.attention.k_gain=false",
            "model.attention.kv_shift=false",
            "model.attention.local_value=false",
            "model.skips.enabled=false",
            "model.residual_mix.enabled=false",
            "model.smear.enabled=false",
        ),
        {},
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_checkpoint_gives_its_own_model_back(kind: str, tmp_path: Path) -> None:
    family, overrides, extra = KINDS[kind]
    source = LanguageModel(load_recipe(family, (*SMALL[family], *overrides)).model, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    content = dict(source.state_dict()) | {name: torch.ones(size) for name, size in extra.items()}
    found = import_state_dict(write(tmp_path / "m.pt", content), family)
    assert set(found.ignored) == set(extra)
    assert torch.equal(logits(build_model(found.recipe, found.tensors)), logits(source))


def test_without_a_query_gain_the_heads_are_assumed_and_can_be_set(tmp_path: Path) -> None:
    path = write(tmp_path / "m.pt", state("sidecar", "model.attention.q_gain=null"))
    with pytest.raises(ArtifactError, match=r"8 heads .* set model\.attention\.heads"):
        broken = state("sidecar", "model.attention.q_gain=null")
        broken["blocks.0.attn.c_k.weight"] = torch.zeros(36, 64)
        import_state_dict(write(tmp_path / "broken.pt", broken), "sidecar")
    told = import_state_dict(path, "sidecar", overrides=["model.attention.heads=4"])
    assert (told.recipe.model.attention.heads, told.recipe.model.attention.kv_heads) == (4, 2)
    assert told.recipe.model.attention.q_gain is None
    assert "model.attention.heads" not in told.assumed


def test_everything_that_tensors_do_not_tell_is_listed_until_it_is_set(tmp_path: Path) -> None:
    path = write(tmp_path / "m.pt", state("token-shift"))
    found = import_state_dict(path, "token-shift")
    values = found.recipe.model_dump(mode="json")
    assert found.assumed == {
        "model.softcap": 30.0,
        "model.context": 1024,
        "model.document_mask": False,
        "model.mlp.activation": "leaky-relu-squared",
        "model.mlp.slope": 0.5,
        "model.depth_scale": True,
        "model.attention.qk_norm": True,
        "model.attention.xsa_last": 4,
        "model.attention.rope.dims": 16,
        "model.attention.rope.frequency_dims": "head",
        "model.attention.rope.base": 10000.0,
        "model.attention.rope.train_length": None,
        "model.stack.0.layers": values["model"]["stack"][0]["layers"],
        "tokenizer": "fineweb-1024",
    }
    overrides = ["model.softcap=15", "model.attention.xsa_layers=[1]", "model.stack.0.loops=1"]
    overrides += ["model.attention.rope={dims=8}"]
    less = import_state_dict(path, "token-shift", overrides=overrides)
    gone = {"model.softcap", "model.attention.xsa_last"}
    gone |= {name for name in found.assumed if ".rope." in name}
    assert set(found.assumed) - set(less.assumed) == gone


def test_the_window_of_the_last_layer_follows_the_context_that_is_set(tmp_path: Path) -> None:
    path = write(tmp_path / "m.pt", state("token-shift"))
    found = import_state_dict(path, "token-shift", overrides=["model.context=256"])
    assert [layer.span for layer in make_plan(found.recipe.model).layers] == [0, 129, 257]


@pytest.mark.parametrize(
    ("family", "override", "told"),
    [
        ("token-shift", "model.mlp.width=4", "the tensors say 3.0"),
        ("token-shift", "model.bigram.enabled=false", "the tensors say True"),
        ("sidecar", "model.attention.heads=2", "the tensors say 4"),
        ("depth-recurrent", "model.stack.1.loops=2", "the tensors say 5"),
        ("depth-recurrent", "model.tied=false", "the tensors say True"),
        ("sidecar", "model.scalars=virtual", "the tensors say block"),
    ],
)
def test_an_override_that_the_tensors_contradict_is_named(
    family: str, override: str, told: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "m.pt", state(family))
    with pytest.raises(ArtifactError) as caught:
        import_state_dict(path, family, overrides=[override])
    assert f"--set {override.partition('=')[0]} gives" in str(caught.value)
    assert told in str(caught.value) and "\n" not in str(caught.value)


def same(found: Any, wanted: torch.Tensor) -> bool:
    """Whether an imported tensor holds exactly these numbers."""
    return np.array_equal(np.asarray(found), wanted.numpy())


def quantized(content: dict[str, torch.Tensor], dtype: str) -> dict[str, Any]:
    """The published dictionary of codes, rows' scales and dtypes, tables as they would be said."""
    tables = {name for name in content if "embed" in name or name == "tok_emb.weight"}
    found: dict[str, Any] = {"quantized": {}, "scales": {}, "dtypes": {}, "passthrough": {}}
    found["passthrough_orig_dtypes"] = dict.fromkeys(content, "float32")
    for name, tensor in content.items():
        if name == "tok_emb.weight":
            scale = (tensor.abs().amax(1) / 31).clamp(min=1e-3).half()
            found["scales"][name] = scale
            found["quantized"][name] = (tensor / scale.float()[:, None]).round().to(torch.int8)
            found["dtypes"][name] = dtype
        else:
            found["passthrough"][name] = tensor.half()
    found["passthrough_orig_dtypes"] |= dict.fromkeys(tables, dtype)
    return found


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_tables_are_rounded_to_the_dtype_that_the_file_states(dtype: str, tmp_path: Path) -> None:
    content = state("token-shift")
    content = {name: torch.randn_like(t) if t.dim() else t for name, t in content.items()}
    packed = quantized(content, dtype)
    found = import_state_dict(write(tmp_path / "m.ptz", packed), "token-shift")
    scales = packed["scales"]["tok_emb.weight"].float()[:, None]
    wanted = {
        "tok_emb.weight": packed["quantized"]["tok_emb.weight"].float() * scales,
        "bigram.embed.weight": content["bigram.embed.weight"].half().float(),
        "ve_embed.weight": content["ve_embed.weight"].half().float(),
    }
    for name, exact in wanted.items():
        rounded = exact.bfloat16().float()
        assert not torch.equal(rounded, exact)
        assert same(found.tensors[name], rounded if dtype == "bfloat16" else exact)
    proj = "bigram.proj.weight"
    assert same(found.tensors[proj], content[proj].half().float())
    assert found.meta.get("table_dtype") == (dtype if dtype == "bfloat16" else None)
    assert "table_dtype" not in found.assumed


def test_where_no_file_can_say_it_bfloat16_tables_are_an_option(tmp_path: Path) -> None:
    content = {name: torch.randn_like(t) for name, t in state("sidecar").items()}
    mixed = {"w": content, "m": dict.fromkeys(content, "passthrough")}
    path = write(tmp_path / "m.ptz", mixed)
    plain = import_state_dict(path, "sidecar")
    rounded = import_state_dict(path, "sidecar", bfloat16_tables=True)
    assert plain.assumed["table_dtype"] == "float32" and "table_dtype" not in rounded.assumed
    assert rounded.meta["table_dtype"] == "bfloat16" and "table_dtype" not in plain.meta
    tables = {"tok_emb.weight", "bigram.embed.weight"}
    for name, tensor in content.items():
        wanted = tensor.bfloat16().float() if name in tables else tensor
        assert same(plain.tensors[name], tensor) and same(rounded.tensors[name], wanted)


def test_state_dicts_of_odd_objects_are_refused_in_one_line(tmp_path: Path) -> None:
    good = state("token-shift")
    bad: dict[str, Any] = {
        "codes in a list": {"quantized": [1], "scales": {}},
        "weights in a list": {"w": [1], "m": {}},
        "a tensor for a table": quantized(good, "bfloat16") | {"dtypes": torch.ones(3)},
        "a strange dtype": quantized(good, "int128"),
        "a long name": good | {"x" * 70_000: torch.ones(1)},
        "sparse": good | {"tok_emb.weight": torch.eye(64).to_sparse()},
        "meta": good | {"tok_emb.weight": torch.empty(1024, 64, device="meta")},
        "expanded": good | {"tok_emb.weight": torch.zeros(1, 1).expand(1 << 20, 1 << 13)},
    }
    for content in bad.values():
        with pytest.raises(ArtifactError) as caught:
            import_state_dict(write(tmp_path / "m.pt", content), "token-shift")
        assert "\n" not in str(caught.value) and len(str(caught.value)) <= 200


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


class Buffer:
    """A pickle that asks for a buffer of a terabyte."""

    def __reduce__(self) -> Any:
        return bytearray, (1 << 40,)


def test_what_would_take_memory_beyond_the_file_is_refused_in_one_line(tmp_path: Path) -> None:
    tensor = torch.zeros(1 << 20)
    views = {f"view{number}": tensor[number:] for number in range(200)}
    name: Any = ("deep",)
    for _ in range(20):
        name = (name, name)
    contents: tuple[Any, ...] = (
        Buffer(),
        {"a": Buffer()},
        views,
        {"n" * 5000: tensor},
        {name: tensor},
        {"quantized": [1], "scales": {}},
        {"quantized": {}, "scales": [1], "passthrough": [2]},
        {"w": [tensor], "m": {"a": 1}},
        {"w": {}, "m": [1]},
    )
    for content in contents:
        (tmp_path / "m.pt").write_bytes(pickle.dumps(content, 2)) if isinstance(
            content, Buffer
        ) else torch.save(content, tmp_path / "m.pt")
        with pytest.raises(ArtifactError) as caught:
            import_state_dict(tmp_path / "m.pt", "sidecar")
        line = str(caught.value)
        assert line.isprintable() and len(line) <= 200 + len(str(tmp_path))


def test_an_unknown_family_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(NiblickError, match="depth-recurrent, sidecar, token-shift"):
        import_state_dict(write(tmp_path / "m.pt", state("sidecar")), "gpt")


def test_the_command_writes_a_checkpoint_that_opens(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write(tmp_path / "m.pt", state("sidecar"))
    import_command(
        source, family="sidecar", out=tmp_path / "c.safetensors", set_=["model.softcap=20"]
    )
    loaded = open_file(tmp_path / "c.safetensors")
    assert loaded.recipe.model.softcap == 20 and loaded.tokenizer is not None
    printed = capsys.readouterr()
    assert "as sidecar" in printed.out and "softcap" not in printed.err
    assert "assumed model.context = 2048 (--set changes it)" in printed.err.splitlines()
    with pytest.raises(ArtifactError, match=r"must end in \.safetensors"):
        import_command(source, family="sidecar", out=tmp_path / "c.pt")


def test_the_command_names_every_assumption_and_every_ignored_tensor(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write(tmp_path / "m.pt", state("token-shift") | {"ve_scales.0": torch.ones(1)})
    import_command(source, family="token-shift", out=tmp_path / "c.safetensors", as_json=True)
    printed = capsys.readouterr()
    document = json.loads(printed.out)
    assert document["assumed"]["model.softcap"] == 30.0
    assert document["ignored"] == {"ve_scales.0": "no attention layer adds this value embedding"}
    lines = [f"assumed {key} = {json.dumps(v)}" for key, v in document["assumed"].items()]
    lines.append("ignored tensor ve_scales.0")
    assert len(printed.err.splitlines()) == len(lines)
    assert all(a.startswith(b) for a, b in zip(printed.err.splitlines(), lines, strict=True))
