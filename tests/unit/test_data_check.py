"""`check` finds what is wrong with a folder of shards."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from niblick.data.check import check
from niblick.data.dataset import Dataset, open_dataset
from niblick.data.prepare import prepare
from niblick.data.shards import open_shard, write_shard
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
