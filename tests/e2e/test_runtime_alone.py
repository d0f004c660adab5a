"""The wheel, installed with what it declares and nothing else, runs models where torch is not."""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
import torch

from niblick.artifact import save_checkpoint
from niblick.compression import Calibration
from niblick.compression.packing import pack
from niblick.model import LanguageModel
from niblick.recipe import load_recipe
from niblick.text.tokenizer import load_tokenizer
from sharing import made_once

ROOT = Path(__file__).parents[2]
SMALL = [
    "model.vocab_size=260",
    "model.dim=32",
    "model.context=32",
    "model.attention.heads=2",
    "model.attention.kv_heads=1",
    "model.attention.rope.dims=8",
    "data.tokenizer=bytes",
]
TEXT = "The river is wide.\n\nIt runs to the sea, and nobody knows how far it is from here.\n" * 4


def link_needed(names: list[str], site: Path) -> set[str]:
    """Link the distributions `names`, and what they need, into `site`; the names of all."""
    done: set[str] = set()
    while names:
        need = names.pop()
        name = re.match(r"[\w.-]+", need)[0].lower().replace("_", "-")
        if name in done:
            continue
        done.add(name)
        try:
            found = distribution(name)
        except PackageNotFoundError:
            assert ";" in need, f"{need} is not installed"  # needed on other systems only
            continue
        for part in {file.parts[0] for file in found.files or () if file.parts[0] != ".."}:
            target = site / part
            if part != "__pycache__" and not target.exists():
                target.symlink_to(found.locate_file(part))
        names += [need for need in found.requires or () if "extra ==" not in need]
    return done


@pytest.fixture(scope="module")
def runtime(tmp_path_factory) -> Path:
    """The `niblick` command of an environment that holds the wheel and its dependencies."""
    return made_once(tmp_path_factory, "runtime", install) / "env" / "bin" / "niblick"


def install(folder: Path) -> None:
    """Build the wheel and put it, with what it needs, into an environment."""
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, source)
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "src", source / "src", ignore=ignored)
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    offline = ["--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "wheel", *offline, "-w", folder, source], check=True)
    (wheel,) = folder.glob("niblick-*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "env"], check=True)
    python = folder / "env" / "bin" / "python"
    subprocess.run(
        [*pip, "--python", python, "install", "--no-deps", "--no-index", wheel], check=True
    )
    (site,) = (folder / "env" / "lib").glob("python*/site-packages")
    (metadata,) = site.glob("niblick-*.dist-info/METADATA")
    lines = metadata.read_text("utf-8").splitlines()
    needs = [line.partition(": ")[2] for line in lines if line.startswith("Requires-Dist:")]
    linked = link_needed([need for need in needs if "extra ==" not in need], site)
    assert not linked & {"torch", "matplotlib"}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A small pocket model, packed; its float weights lie beside it, and some text."""
    folder = tmp_path_factory.mktemp("model")
    recipe, tokenizer = load_recipe("pocket", SMALL), load_tokenizer("bytes")
    generator = torch.Generator().manual_seed(1)
    tensors = {
        name: tensor + 0.1 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in LanguageModel(recipe.model, seed=0).state_dict().items()
    }
    tokens = torch.randint(4, 260, (2, 33), generator=generator)
    save_checkpoint(
        folder / "c.safetensors", tensors=tensors, recipe=recipe, tokenizer=tokenizer, meta={}
    )
    pack(
        tensors,
        recipe,
        tokenizer,
        folder / "a.nib",
        calibration=Calibration([tokens]),
        max_bytes=60_000,
    )
    (folder / "text.txt").write_text(TEXT, "utf-8")
    return folder


@pytest.fixture
def run(runtime, tmp_path, monkeypatch):
    """Runs the command with a cache of its own, without a C compiler: code, output, errors."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(runtime.parent))
    monkeypatch.delenv("PYTHONPATH", raising=False)

    def call(*arguments: object) -> tuple[int, str, str]:
        done = subprocess.run(
            [runtime, *map(str, arguments)],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            check=False,
        )
        return done.returncode, done.stdout, done.stderr

    return call


@pytest.mark.parametrize("file", ["a.nib", "c.safetensors"])
def test_a_packed_model_and_a_checkpoint_generate_without_torch(run, model, file):
    given = ("generate", model / file, "--prompt", "The river", "--max-tokens", 12, "--json")
    code, out, err = run(*given)
    assert code == 0, err
    document = json.loads(out)
    assert document["engine"] == "numpy" and len(document["tokens"]) == 12


@pytest.mark.parametrize("mode", ["streaming", "chunked", "sliding", "document"])
def test_every_mode_without_adaptation_scores_text_as_torch_does(run, model, mode, capfd):
    from niblick.cli import main

    stride = ("--stride", 16) if mode == "sliding" else ()
    given = ("eval", model / "a.nib", "--data", model / "text.txt", "--mode", mode, "--json")
    proven = ("--prove",) if mode == "document" else ()
    code, out, err = run(*given, *stride, *proven)
    assert code == 0, err
    found = json.loads(out)
    with pytest.raises(SystemExit):
        main([*map(str, given), *map(str, stride), "--engine", "torch"])
    right = json.loads(capfd.readouterr().out)
    assert abs(found["bpb"] - right["bpb"]) < 1e-4
    assert (found["settings"]["engine"], right["settings"]["engine"]) == ("numpy", "torch")
    assert found["bytes"] == right["bytes"] == len(TEXT.encode())


@pytest.mark.parametrize("arguments", [["recipes"], ["plan", "pocket"], ["--help"]])
def test_what_needs_no_model_runs_too(run, arguments):
    code, out, err = run(*arguments)
    assert code == 0 and "pocket" in out + "pocket" * (arguments == ["--help"]), err


def test_data_is_prepared_and_checked_without_torch(run, model, tmp_path):
    (tmp_path / "texts").mkdir()
    for number in range(120):
        words = random.Random(number).sample(TEXT.split(), len(TEXT.split()))
        (tmp_path / "texts" / f"{number}.txt").write_text(" ".join(words), "utf-8")
    code, _, err = run("data", "prepare", "texts", "--out", "shards", "--tokenizer", "bytes")
    assert code == 0, err
    assert run("data", "check", "shards")[0] == 0
    code, out, err = run("eval", model / "a.nib", "--data", "shards", "--json")
    assert code == 0, err
    assert json.loads(out)["split"] == "validation"


@pytest.mark.parametrize(
    "arguments", [["train", "pocket"], ["pack", "c.safetensors"], ["eval", "a.nib", "--ttt", "sgd"]]
)
def test_a_command_of_the_lab_names_what_installs_it_in_one_line(run, model, arguments):
    arguments = [str(model / part) if "." in part else part for part in arguments]
    code, _, err = run(*arguments)
    assert code == 2
    assert "pip install 'niblick[lab]'" in err and "torch" in err and err.count("\n") == 1


def test_serving_without_its_extra_names_what_installs_it_in_one_line(run, model):
    code, _, err = run("serve", str(model / "a.nib"))
    assert code == 2
    assert "pip install 'niblick[serve]'" in err and err.count("\n") == 1


def test_python_gets_a_model_whose_torch_form_names_the_lab(runtime, model):
    script = (
        "import sys, niblick; m = niblick.load(sys.argv[1]); m.logits([1, 70, 80]).shape;"
        "print(m)\ntry: m.torch()\nexcept niblick.errors.NiblickError as error: print(error)"
    )
    done = subprocess.run(
        [runtime.parent / "python", "-c", script, model / "a.nib"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "niblick.Model" in done.stdout, done.stderr
    assert "pip install 'niblick[lab]'" in done.stdout


def test_doctor_tells_what_is_missing_and_what_runs_all_the_same(run):
    code, out, err = run("doctor", "--seconds", "0.1", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["torch"] is None and found["pocket"]["generate"]["engine"] == "numpy"
    told = " ".join(each["what"] for each in found["advice"])
    assert "no compiled" in told and "torch is not installed" in told
