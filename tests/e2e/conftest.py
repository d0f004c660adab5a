"""A tiny recipe on a corpus of sixty kilobytes, for tests that go from the command line to
files.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

RECIPE = """
name = "tiny"
[data]
corpus = "{corpus}"
tokenizer = "bytes"
[model]
vocab_size = 260
bos_id = 1
dim = 32
context = 64
stack = [{{ layers = ["token-shift", "window:8", "full"] }}]
attention = {{ heads = 2, kv_heads = 1, rope = {{ dims = 8 }} }}
bigram = {{ enabled = true, buckets = 64, width = 16 }}
smear = {{ enabled = true }}
[training]
duration = "6 steps"
sequence_length = 64
batch_tokens = 256
threads = 1
[training.validation]
every = 0.5
tokens = 256
[artifact]
max_bytes = 100_000
"""


def write_corpus(folder: Path) -> Path:
    """Sixty documents over a small vocabulary of words."""
    words = ["alpha", "bread", "cloud", "delta", "ember", "fjord", "grape"]
    choose = random.Random(0)
    folder.mkdir()
    for i in range(60):
        (folder / f"{i}.txt").write_text(f"{i} " + " ".join(choose.choices(words, k=160)))
    return folder


@pytest.fixture(scope="session")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the libraries are that these tests compile, once for all of them."""
    return tmp_path_factory.mktemp("libraries")


@pytest.fixture
def recipe(tmp_path: Path, libraries: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny recipe file; prepared data goes below the test's own folder, which is the working
    directory.
    """
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "cache" / "niblick").mkdir(parents=True)
    (tmp_path / "cache" / "niblick" / "native").symlink_to(libraries)
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "tiny.toml"
    path.write_text(RECIPE.format(corpus=write_corpus(tmp_path / "corpus")))
    return path
