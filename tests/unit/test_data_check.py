"""`check` finds what is wrong with a folder of shards."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from niblick.data.check import check
from niblick.data.dataset import Dataset, open_dataset
from niblick.data.prepare import prepare
from niblick.data.shards import open_shard, write_shard
from niblick.errors import DataError
from niblick.files import sha256_file

TEXTS = [f"The {number}th tree of the wood\nis  green in {number % 9} é." for number in range(150)]


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    (tmp_path / "c.jsonl").write_text(
        "\n".join(json.dumps({"text": text}) for text in TEXTS), "utf-8"
    )
    return prepare(tmp_path / "c.jsonl", out=tmp_path / "d", vocab_size=300)


def problems(folder: Path) -> str:
    report = check(folder)
    assert not report.ok
    return "; ".join(report.problems)


def test_a_prepared_folder_is_sound_and_fully_accounted_for(data: Dataset) -> None:
    report = check(data.folder)
    assert report.problems == []
    for split, found in report.splits.items():
        entry = data.manifest.splits[split]  # type: ignore[union-attr]
        assert (found.documents, found.tokens, found.bytes) == (
            entry.documents,
            entry.tokens,
            entry.bytes,
        )
        assert found.accounted == found.documents
    assert json.loads(json.dumps(report.to_json()))["ok"] is True


def test_truncation_is_reported_for_every_shard_concerned(data: Dataset) -> None:
    for split in ("train", "test"):
        path = data.shards(split)[0]
        path.write_bytes(path.read_bytes()[:-1])
    text = problems(data.folder)
    assert "niblick_train_000000.bin" in text and "niblick_test_000000.bin" in text


def test_a_changed_token_is_found_by_its_hash(data: Dataset) -> None:
    path = data.shards("validation")[0]
    tokens = np.array(open_shard(path))
    tokens[3] ^= 1
    write_shard(path, tokens)
    assert "has changed since it was prepared" in problems(data.folder)


def bare(data: Dataset, folder: Path, train: list[int], validation: list[int]) -> Path:
    folder.mkdir()
    write_shard(folder / "x_train_000000.bin", train)
    write_shard(folder / "x_val_000000.bin", validation)
    (folder / "t.model").write_bytes(data.tokenizer.to_file_bytes())
    return folder


def test_a_held_out_document_in_training_is_found_in_a_folder_without_manifest(
    data: Dataset, tmp_path: Path
) -> None:
    train, validation = data.tokens("train").tolist(), data.tokens("validation").tolist()
    assert check(bare(data, tmp_path / "clean", train, validation)).ok
    assert "1 train documents are also in a held-out split" in problems(
        bare(
            data,
            tmp_path / "leak",
            train + validation[: next(data.documents("validation"))[1]],
            validation,
        )
    )


def test_an_id_outside_the_vocabulary_is_found_wherever_it_is(
    data: Dataset, tmp_path: Path
) -> None:
    validation = data.tokens("validation").tolist()
    assert "token id 300" in problems(bare(data, tmp_path / "b", [*validation, 1, 300], validation))


def test_byte_accounting_is_compared_with_the_tokenizer_library(
    data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_dataset(data.folder)
    monkeypatch.setattr(type(opened.tokenizer), "reference_decode", lambda self, ids: "wrong")
    assert "its decoded text has 5" in problems(data.folder)


def test_bytes_that_are_not_utf8_are_found(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_text(
        "\n".join(json.dumps({"text": text}) for text in TEXTS), "utf-8"
    )
    data = prepare(tmp_path / "c.jsonl", out=tmp_path / "d", tokenizer="bytes")
    tokens = np.array(data.tokens("validation"))
    tokens[np.flatnonzero(tokens == 0xC3 + 4)[0]] = 0xFF + 4
    write_shard(data.shards("validation")[0], tokens)
    manifest = json.loads((data.folder / "manifest.json").read_text())
    manifest["splits"]["validation"]["shards"][0]["sha256"] = sha256_file(
        data.shards("validation")[0]
    )
    (data.folder / "manifest.json").write_text(json.dumps(manifest))
    assert "does not decode to valid UTF-8" in problems(data.folder)


def test_an_empty_folder_and_a_text_file_are_problems(tmp_path: Path) -> None:
    assert "neither a manifest nor shards" in problems(tmp_path)
    (tmp_path / "a_train_0.bin").write_text("hello")
    assert "a_train_0.bin" in problems(tmp_path)


def changed_manifest(data: Dataset, change: Callable[[dict[str, Any]], object]) -> None:
    """Rewrite the manifest of `data` after `change`."""
    path = data.folder / "manifest.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("vocab_size", 301, "its vocab_size is 300, not 301"),
        ("bos_id", 2, "its bos_id is 1, not 2"),
        ("lossless", False, "its lossless is True, not False"),
        ("tokenizer_sha256", "0" * 64, "its SHA-256 is"),
    ],
)
def test_a_manifest_that_says_something_else_of_the_tokenizer_is_found(
    data: Dataset, key: str, value: object, words: str
) -> None:
    changed_manifest(data, lambda document: document.update({key: value}))
    assert words in problems(data.folder)


def test_a_wrong_hash_of_a_split_is_found(data: Dataset) -> None:
    changed_manifest(data, lambda document: document["splits"]["test"].update(sha256="0" * 64))
    assert "test holds other tokens than the manifest's SHA-256 says" in problems(data.folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.update(vocab_size="300"), "vocab_size is '300', not a count"),
        (lambda d: d.update(bos_id=True), "bos_id is True, not a count"),
        (lambda d: d.update(lossless=1), "lossless is 1, not true or false"),
        (lambda d: d.update(corpus="x" * 60_000), "corpus is 'xxx"),
        (lambda d: d.update(tokenizer_file=5), "tokenizer_file is 5, not text"),
        (lambda d: d.update(tokenizer_file="../t.model"), "not in its own folder"),
        (lambda d: d.update(tokenizer_file="t\0.model"), "not text"),
        (lambda d: d.update(new="y" * 60_000), "'new' is unknown"),
        (lambda d: d.pop("key"), "'key' is missing"),
        (lambda d: d.update(splits=[1]), "[1] is not an object"),
        (lambda d: d["splits"].update({"z" * 60_000: {}}), "it has a split 'zzz"),
        (lambda d: d["splits"].update(test=5), "5 is not an object"),
        (lambda d: d["splits"]["test"].update(shards={}), "lists no shards"),
        (lambda d: d["splits"]["test"].update(tokens=10**400), "a number of about 400 digits"),
        (lambda d: d["splits"]["test"]["shards"][0].update(file=7), "file is 7, not text"),
        (lambda d: d["splits"]["test"]["shards"][0].update(file="a\0b"), "not text"),
    ],
)
def test_a_malformed_manifest_is_one_short_line(
    data: Dataset, change: Callable[[dict[str, Any]], object], words: str
) -> None:
    changed_manifest(data, change)
    with pytest.raises(DataError) as caught:
        open_dataset(data.folder)
    line = str(caught.value)
    assert words in line and line.isprintable()
    assert len(line) <= 200 + len(str(data.folder))


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": ' * 100_000, "9" * 5000, "{]", ""])
def test_json_that_no_reader_takes_is_one_short_line(data: Dataset, text: str) -> None:
    (data.folder / "manifest.json").write_text(text)
    with pytest.raises(DataError, match="is not JSON") as caught:
        open_dataset(data.folder)
    assert len(str(caught.value)) <= 200 + len(str(data.folder))
