"""Fetching shards: from a stand-in for a repository, and through the real client against a local
server.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from hub_server import hub_server
from niblick.data.dataset import open_dataset
from niblick.data.fetch import HuggingFaceHub, RemoteFile, fetch_fineweb
from niblick.data.shards import write_shard
from niblick.errors import DataError
from niblick.text.tokenizer import load_tokenizer

REMOTE = "datasets/datasets/fineweb10B_sp1024"


class LocalHub:
    """A repository in a folder; `cut` files arrive truncated, `served` lists what was asked for."""

    def __init__(self, root: Path) -> None:
        self.root, self.cut, self.served = root, set[str](), list[str]()

    def list_files(self, folder: str) -> Sequence[RemoteFile]:
        place = self.root / folder
        return [
            RemoteFile(
                f"{folder}/{file.name}",
                file.stat().st_size,
                hashlib.sha256(file.read_bytes()).hexdigest(),
            )
            for file in (place.iterdir() if place.is_dir() else ())
        ]

    def download(self, path: str, into: Path) -> Path:
        self.served.append(Path(path).name)
        target = into / path
        target.parent.mkdir(parents=True, exist_ok=True)
        data = (self.root / path).read_bytes()
        target.write_bytes(data[:-2] if Path(path).name in self.cut else data)
        return target


@pytest.fixture
def hub(tmp_path: Path) -> LocalHub:
    tokenizer = load_tokenizer("fineweb-1024")
    root = tmp_path / "remote"
    for number in range(3):
        write_shard(
            root / REMOTE / f"fineweb_train_{number:06d}.bin",
            tokenizer.encode_document(f"train {number}"),
        )
    write_shard(root / REMOTE / "fineweb_val_000000.bin", tokenizer.encode_document("validation"))
    (root / "datasets/tokenizers").mkdir()
    (root / "datasets/tokenizers/fineweb_1024_bpe.model").write_bytes(tokenizer.to_file_bytes())
    (root / "datasets/manifest.json").write_text(json.dumps({"stale": True}))
    return LocalHub(root)


def test_a_fetch_brings_all_validation_and_the_first_training_shards(
    hub: LocalHub, tmp_path: Path
) -> None:
    lines: list[str] = []
    folder = fetch_fineweb(out=tmp_path / "data", train_shards=2, hub=hub, report=lines.append)
    data = open_dataset(folder)
    assert [path.name for path in data.shards("train")] == [
        "fineweb_train_000000.bin",
        "fineweb_train_000001.bin",
    ]
    assert (
        list(data.texts("validation")) == ["validation"] and data.tokenizer.name == "fineweb-1024"
    )
    assert "manifest.json" not in hub.served and len(lines) == 4


def test_an_interrupted_fetch_continues_and_a_finished_one_fetches_nothing(
    hub: LocalHub, tmp_path: Path
) -> None:
    hub.cut = {"fineweb_train_000001.bin"}
    with pytest.raises(DataError, match="arrived damaged"):
        fetch_fineweb(out=tmp_path / "data", train_shards=2, hub=hub)
    hub.cut, hub.served = set(), []
    folder = fetch_fineweb(out=tmp_path / "data", train_shards=2, hub=hub)
    assert hub.served == ["fineweb_train_000001.bin", "fineweb_1024_bpe.model"]
    damaged = folder / "fineweb_train_000000.bin"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\xff")
    hub.served = []
    fetch_fineweb(out=tmp_path / "data", train_shards=2, hub=hub)
    assert hub.served == ["fineweb_train_000000.bin"]


def test_a_remote_file_that_is_no_shard_is_refused(hub: LocalHub, tmp_path: Path) -> None:
    (hub.root / REMOTE / "fineweb_val_000000.bin").write_bytes(b"x" * 3000)
    with pytest.raises(DataError, match="not a shard"):
        fetch_fineweb(out=tmp_path / "data", hub=hub)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train_shards": 4}, "has 3"),
        ({"train_shards": -1}, "-1 training shards"),
        ({"variant": "sp2048"}, "lists no fineweb_val"),
        ({"variant": "bpe"}, "expected byte260 or sp"),
        ({"root": "elsewhere"}, "lists no fineweb_val"),
    ],
)
def test_what_the_repository_does_not_have_is_a_clear_error(
    hub: LocalHub, tmp_path: Path, arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        fetch_fineweb(out=tmp_path / "data", hub=hub, **arguments)  # type: ignore[arg-type]


@pytest.fixture
def endpoint(hub: LocalHub) -> Iterator[str]:
    """A server on this machine that answers as the hub does for one dataset repository."""

    def answer(path: str) -> tuple[bytes, int]:
        if "/tree/" in path:
            files = hub.list_files(path.split("/tree/main/")[1])
            entries = [
                {
                    "type": "file",
                    "path": f.path,
                    "size": f.size,
                    "oid": "0" * 40,
                    "lfs": {"oid": f.sha256, "size": f.size, "pointerSize": 1},
                }
                for f in files
            ]
            return json.dumps(entries).encode(), 200
        file = hub.root / path.split("/resolve/main/")[-1]
        return (file.read_bytes(), 200) if file.is_file() else (b"", 404)

    with hub_server(answer) as address:
        yield address


def test_the_real_client_lists_and_downloads(
    endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("huggingface_hub")
    folder = fetch_fineweb(
        out=tmp_path / "data", hub=HuggingFaceHub("someone/repository", endpoint=endpoint)
    )
    assert list(open_dataset(folder).texts("train")) == ["train 0"]


def test_a_failure_of_the_client_is_one_line_that_names_repository_and_file(
    endpoint: str, tmp_path: Path
) -> None:
    pytest.importorskip("huggingface_hub")
    with pytest.raises(
        DataError, match=r"cannot fetch 'absent\.bin' from dataset repository 'someone/repository'"
    ):
        HuggingFaceHub("someone/repository", endpoint=endpoint).download("absent.bin", tmp_path)
