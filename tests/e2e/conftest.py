"""A tiny recipe on a corpus of sixty kilobytes, for tests that go from the command line to
files.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from commands import run
from sharing import made_once

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
    return made_once(tmp_path_factory, "libraries")


@pytest.fixture
def recipe(tmp_path: Path, libraries: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny recipe file; prepared data goes below the test's own folder, which is the working
    directory.
    """
    return write_recipe(tmp_path, libraries, monkeypatch)


def write_recipe(folder: Path, libraries: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny recipe in `folder`, which becomes the working directory and holds the cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    (folder / "cache" / "niblick").mkdir(parents=True)
    (folder / "cache" / "niblick" / "native").symlink_to(libraries)
    monkeypatch.chdir(folder)
    path = folder / "tiny.toml"
    path.write_text(RECIPE.format(corpus=write_corpus(folder / "corpus")))
    return path


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory, libraries: Path) -> Path:
    """A two-step run in `run` and its submission in `submission`; to be copied, not changed."""

    def make(folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            recipe = write_recipe(folder, libraries, patch)
            assert run("train", str(recipe), "--out", "run", "--duration", "2 steps") == 0
            export = ["export", "run", "--to", "submission", "--out", "submission"]
            assert run(*export, "--author", "Ada") == 0

    return made_once(tmp_path_factory, "exported", make)
