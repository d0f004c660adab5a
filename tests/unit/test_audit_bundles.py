"""Modules that a script carries in memory are read as if they lay beside it."""

from __future__ import annotations

import base64
import json
import lzma
import zlib
from pathlib import Path

import pytest

from niblick.audit.review import review
from niblick.audit.unpack import unpack

MODEL = """
import torch
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(64, 64)
    def forward(self, x):
        return self.table(x)
"""
SCORE = """
import torch
import torch.nn.functional as F
def measure(model, tokens, sizes):
    nats = torch.zeros(())
    count = torch.zeros(())
    with torch.no_grad():
        for s in range(0, tokens.numel() - 1, 64):
            x, y = tokens[s:s + 64], tokens[s + 1:s + 65]
            nats += F.cross_entropy(model(x)[: y.numel()], y, reduction="sum")
            count += sizes[y].sum()
    return nats / 0.6931 / count
"""
LEARN = """
import torch
import torch.nn.functional as F
def fit(model, tokens):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for s in range(0, tokens.numel() - 1, 64):
        loss = F.cross_entropy(model(tokens[s:s + 64]), tokens[s + 1:s + 65])
        loss.backward()
        optimizer.step()
"""
MAIN = """
import numpy as np
import torch
from kit.net import Net
from kit import scoring
{extra}
def main():
    val_tokens = np.fromfile("data/shard_val_000000.bin", dtype=np.uint16)
    val_tokens = torch.from_numpy(val_tokens.astype(np.int64))
    byte_sizes = torch.load("byte_sizes.pt")
    model = Net()
    {step}
    print("val_bpb", scoring.measure(model, val_tokens, byte_sizes))
main()
"""
IMPORTER = """
import base64, json, lzma, sys, zlib, types
from importlib.abc import Loader, MetaPathFinder
from importlib.util import spec_from_loader
{store}
class Held(MetaPathFinder, Loader):
    def find_spec(self, name, path=None, target=None):
        if name in PARTS:
            return spec_from_loader(name, self, is_package=name == "kit")
    def exec_module(self, module):
        {run}
sys.meta_path.insert(0, Held())
"""


def _parts(leaky: bool) -> dict[str, str]:
    parts = {"kit": "", "kit.net": MODEL, "kit.scoring": SCORE}
    return {**parts, "kit.learn": LEARN} if leaky else parts


def _main(leaky: bool) -> str:
    return MAIN.format(
        extra="from kit.learn import fit" if leaky else "",
        step="fit(model, val_tokens)" if leaky else "pass",
    )


def _whole(parts: dict[str, str]) -> str:
    text = base64.b85encode(lzma.compress(json.dumps(parts).encode())).decode()
    return IMPORTER.format(
        store=f"PARTS = json.loads(lzma.decompress(base64.b85decode({text!r})))",
        run='exec(compile(PARTS[module.__name__], module.__name__, "exec"), module.__dict__)',
    )


def _each(parts: dict[str, str]) -> str:
    packed = {
        name: base64.b64encode(zlib.compress(text.encode())).decode()
        for name, text in parts.items()
    }
    run = (
        "text = zlib.decompress(base64.b64decode(PARTS[module.__name__])).decode()\n       "
        " exec(text, vars(module))"
    )
    return IMPORTER.format(store=f"PARTS = {packed!r}", run=run)


def _loop(parts: dict[str, str]) -> str:
    return (
        f"import sys, types\nPARTS = {parts!r}\nfor name, text in PARTS.items():\n    module ="
        " types.ModuleType(name)\n    sys.modules[name] = module\n    exec(text,"
        " module.__dict__)\n"
    )


@pytest.mark.parametrize("pack", [_whole, _each, _loop])
def test_modules_held_in_memory_are_unpacked_by_name(pack: object) -> None:
    found = unpack((pack(_parts(False)) + _main(False)).encode(), "train_gpt.py")  # type: ignore[operator]
    assert set(found.files) >= {"kit/net.py", "kit/scoring.py"}
    assert "def measure" in found.files["kit/scoring.py"]
    assert found.source.error is None


@pytest.mark.parametrize("pack", [_whole, _each, _loop])
@pytest.mark.parametrize("leaky", [False, True])
def test_a_breach_in_a_module_held_in_memory_is_found_and_its_absence_too(
    tmp_path: Path, pack: object, leaky: bool
) -> None:
    script = tmp_path / "train_gpt.py"
    script.write_text(pack(_parts(leaky)) + _main(leaky), "utf-8")  # type: ignore[operator]
    report = review(script)
    assert report.verdict == ("flag_prequant_ttt" if leaky else "clean_neural")
    if leaky:
        spans = [f.span for f in report.findings if f.verdict == "flag_prequant_ttt"]
        assert spans[0] is not None and spans[0].file == "kit/scoring.py"


def test_a_package_in_the_folder_is_followed_through_its_dotted_and_relative_imports(
    tmp_path: Path,
) -> None:
    (tmp_path / "kit").mkdir()
    for name, text in {
        "__init__": "from . import scoring\n",
        "net": MODEL,
        "scoring": SCORE,
        "learn": LEARN,
    }.items():
        (tmp_path / "kit" / f"{name}.py").write_text(text)
    (tmp_path / "train_gpt.py").write_text(_main(True))
    assert review(tmp_path).verdict == "flag_prequant_ttt"
