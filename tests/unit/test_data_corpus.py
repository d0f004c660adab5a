"""Reading a user's documents and splitting them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from niblick.data.corpus import load_corpus, split_documents, split_of
from niblick.data.textfiles import cut_text
from niblick.errors import DataError

MANY = [f"document number {number}\nwith a second line" for number in range(300)]
LARGE = [" ".join(f"{n * m * 7919 % 99991}" for m in range(1, 400)) for n in range(1, 300)]


def folder_of(tmp_path: Path, texts: list[str]) -> Path:
    for number, text in enumerate(texts):
        (tmp_path / f"{number:04d}.txt").write_bytes(text.encode())
    return tmp_path


def test_every_document_is_in_the_one_split_its_content_decides(tmp_path: Path) -> None:
    splits = load_corpus(folder_of(tmp_path, LARGE)).splits
    assert sorted(text for texts in splits.values() for text in texts) == sorted(LARGE)
    assert all(split_of(text) == split for split, texts in splits.items() for text in texts)
    assert splits["validation"] and splits["test"]


def test_training_order_depends_on_the_documents_alone() -> None:
    forward, backward = split_documents(MANY)["train"], split_documents(MANY[::-1])["train"]
    assert list(forward) == list(backward) != [text for text in MANY if split_of(text) == "train"]


def test_the_three_file_formats_give_the_same_documents(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    (tmp_path / "txt").mkdir()
    expected = load_corpus(folder_of(tmp_path / "txt", MANY))
    lines = "\n".join(json.dumps({"text": text, "other": 1}) for text in MANY)
    (tmp_path / "a.jsonl").write_text(lines + "\n\n", "utf-8")
    parquet.write_table(
        pyarrow.table({"text": MANY, "n": list(range(len(MANY)))}), tmp_path / "a.parquet"
    )
    for file in ("a.jsonl", "a.parquet"):
        assert load_corpus(tmp_path / file).sha256() == expected.sha256()


def test_folders_named_as_splits_are_taken_as_sorted_by_hand(tmp_path: Path) -> None:
    for split, texts in {"train": ["a", "b", "v"], "validation": ["v", "t"], "test": ["t"]}.items():
        (tmp_path / split).mkdir()
        folder_of(tmp_path / split, texts)
    splits = load_corpus(tmp_path).splits
    assert {split: sorted(texts) for split, texts in splits.items()} == {
        "train": ["a", "b"],
        "validation": ["v"],
        "test": ["t"],
    }


def test_a_long_text_is_cut_at_blank_lines_and_nothing_is_lost() -> None:
    text = "\n\n".join(f"paragraph {number} " + "word " * 100 for number in range(100))
    parts = cut_text(text)
    assert "".join(parts) == text and len(parts) > 5
    assert min(map(len, parts)) >= 4096
    assert cut_text("short\n\ntext") == ["short\n\ntext"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"body": "y"}', "line 2 has no text"),
        ("a.jsonl", b"nonsense", "line 1 is not JSON"),
        ("a.txt", b"ab\xff", "byte 2 is 0xFF"),
        ("a.txt", b"", "no documents"),
        ("a.csv", b"text", "holds no .txt"),
        ("a.parquet", b"not parquet", "not a readable Parquet"),
    ],
)
def test_unusable_files_give_an_error_that_names_the_place(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_corpus(tmp_path)


def test_unknown_and_mixed_corpora_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="wiki-vital"):
        load_corpus("no-such-corpus")
    (tmp_path / "train").mkdir()
    folder_of(tmp_path / "train", ["a"])
    folder_of(tmp_path, ["b"])
    with pytest.raises(DataError, match="inside and outside"):
        load_corpus(tmp_path)


def test_hidden_files_and_folders_are_left_out(tmp_path: Path) -> None:
    folder_of(tmp_path, MANY[:50])
    (tmp_path / ".cache").mkdir()
    folder_of(tmp_path / ".cache", ["hidden"])
    assert sum(map(len, load_corpus(tmp_path).splits.values())) == 50
