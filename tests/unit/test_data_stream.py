"""Streaming a corpus: the same bytes however the work is divided, and nothing done twice."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest
import zstandard

from hub_server import hub_server
from niblick.data import inputs, spill, stream
from niblick.data.check import check
from niblick.data.corpus import split_documents, split_of
from niblick.data.dataset import Dataset
from niblick.data.fetch import HuggingFaceHub
from niblick.data.inputs import is_large, list_inputs, read_unit
from niblick.data.prepare import prepare
from niblick.data.stream import SPLITS, Progress, Streaming, prepare_stream
from niblick.errors import DataError
from niblick.text.tokenizer import load_tokenizer

TEXTS = [
    f"The {n}th house of the town\nstands by  the {n * n} rivers." * (1 + n % 3) for n in range(600)
]
SETTINGS = Streaming(tokenizer="train", vocab_size=300, shard_tokens=5000)
BYTES = Streaming(tokenizer="bytes", shard_tokens=5000)


def lines(texts: list[str], **more: Any) -> bytes:
    return "".join(json.dumps({"text": text, **more}) + "\n" for text in texts).encode()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six hundred documents in files of every kind that needs no other package."""
    root = tmp_path_factory.mktemp("corpus")
    (root / "a.jsonl").write_bytes(lines(TEXTS[:300]) + b"\n")
    (root / "b.jsonl.gz").write_bytes(gzip.compress(lines(TEXTS[300:400])))
    packed = zstandard.compress(lines(TEXTS[400:450])) + zstandard.compress(lines(TEXTS[450:500]))
    (root / "c.jsonl.zst").write_bytes(packed)
    (root / "d").mkdir()
    for number, text in enumerate(TEXTS[500:]):
        (root / "d" / f"{number:03d}.txt").write_text(text)
    return root


@pytest.fixture(autouse=True, scope="module")
def small() -> Iterator[None]:
    """Units of four kilobytes, runs and gathers of some thousand tokens."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inputs, "UNIT", 4000)
        patch.setattr(inputs, "_WHOLE", 4000)
        patch.setattr(stream, "_RUN_TOKENS", 3000)
        patch.setattr(spill, "_GATHER", 900)
        yield


def fixed(settings: Streaming) -> Any:
    return load_tokenizer("bytes") if settings.tokenizer == "bytes" else None


def made(source: Path, out: Path, settings: Streaming = BYTES, **how: Any) -> Dataset:
    found = prepare_stream(source, out, settings, fixed(settings), **how)
    assert isinstance(found, Dataset)
    return found


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def expected(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return content(made(corpus, tmp_path_factory.mktemp("whole") / "d").folder)


def test_every_document_is_there_once_in_the_split_and_order_of_its_content(
    corpus: Path, tmp_path: Path
) -> None:
    data = made(corpus, tmp_path / "d", SETTINGS)
    splits = split_documents(TEXTS)
    assert list(data.texts("train")) == list(splits["train"])
    for split in SPLITS:
        found = list(data.texts(split))
        assert sorted(found) == sorted(splits[split])
        assert all(split_of(text) == split for text in found)
        entry = data.manifest.splits[split]  # type: ignore[union-attr]
        assert entry.bytes == sum(len(text.encode()) for text in found)
        assert entry.sha256 == data.sha256(split)
        assert [shard.tokens for shard in entry.shards[:-1]] == [5000] * (len(entry.shards) - 1)
    assert len(data.shards("train")) > 2 and check(data.folder).ok
    assert list(tmp_path.iterdir()) == [tmp_path / "d"]


@pytest.mark.parametrize("parts", [1, 3])
def test_parts_and_executors_give_the_bytes_of_one_process(
    corpus: Path, tmp_path: Path, expected: dict[str, bytes], parts: int
) -> None:
    with ThreadPoolExecutor(3) as pool:
        for part in range(parts, 0, -1):
            found = prepare_stream(
                corpus, tmp_path / "d", BYTES, fixed(BYTES), executor=pool, part=(part, parts)
            )
            assert isinstance(found, Progress) == (part > 1)
            if isinstance(found, Progress):
                assert 0 < found.units < found.of
    assert content(tmp_path / "d") == expected


def test_parts_of_machines_that_share_no_files_are_copied_together(
    corpus: Path, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    for part in (1, 2):
        found = prepare_stream(
            corpus, tmp_path / f"{part}" / "d", BYTES, fixed(BYTES), part=(part, 2)
        )
        assert isinstance(found, Progress)
    (work,) = (tmp_path / "1").iterdir()
    copytree(tmp_path / "2" / work.name / "units", work / "units", dirs_exist_ok=True)
    assert content(made(corpus, tmp_path / "1" / "d").folder) == expected


class KilledError(Exception):
    """Stands for the end of the process."""


@pytest.mark.parametrize("after", [0, 3, 11])
def test_a_preparation_that_was_killed_goes_on_and_gives_the_same_bytes(
    corpus: Path,
    tmp_path: Path,
    expected: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    after: int,
) -> None:
    """It ends while a file is written, which by then is there in part under another name."""
    real, written = stream.write_atomically, list[Path]()

    def until(path: Path, chunks: Any, **how: Any) -> None:
        if len(written) == after + 2:
            path.with_name(f".{path.name}.tmp").write_bytes(b"part")
            raise KilledError
        written.append(path)
        real(path, chunks, **how)

    with monkeypatch.context() as patch:
        patch.setattr(stream, "write_atomically", until)
        patch.setattr(spill, "write_atomically", until)
        with pytest.raises(KilledError):
            made(corpus, tmp_path / "d")
    tokenized = list[int]()
    real_unit = stream.tokenize_unit

    def counted(job: stream.Job) -> int:
        tokenized.append(job.number)
        return real_unit(job)

    monkeypatch.setattr(stream, "tokenize_unit", counted)
    made(corpus, tmp_path / "d")
    units = len(list_inputs(corpus, "text", SPLITS).units)
    finished = sum(path.suffix == ".json" for path in written)
    assert len(tokenized) == units - finished
    assert content(tmp_path / "d") == expected


def test_a_preparation_that_was_killed_while_it_wrote_shards_keeps_those_it_has(
    corpus: Path, tmp_path: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, names = stream.make_shard, list[str]()

    def until(job: Any) -> Any:
        if len(names) == 2:
            raise KilledError
        names.append(job.name)
        return real(job)

    with monkeypatch.context() as patch:
        patch.setattr(stream, "make_shard", until)
        with pytest.raises(KilledError):
            made(corpus, tmp_path / "d")
    work = next(path for path in tmp_path.iterdir() if path.name != "d")
    before = {name: (work / "data" / name).stat().st_mtime_ns for name in names}
    data = made(corpus, tmp_path / "d")
    assert content(data.folder) == expected
    assert before == {name: (data.folder / name).stat().st_mtime_ns for name in names}


def test_preparing_again_reuses_the_folder_until_the_input_changes(
    corpus: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "c.jsonl"
    copy.write_bytes(lines(TEXTS[:200]))
    stamp = made(copy, tmp_path / "d").folder.stat().st_mtime_ns
    assert made(copy, tmp_path / "d").folder.stat().st_mtime_ns == stamp
    copy.write_bytes(lines(TEXTS[1:201]))
    assert sorted(made(copy, tmp_path / "d").texts("test")) == sorted(
        split_documents(TEXTS[1:201])["test"]
    )


def test_documents_of_held_out_folders_are_in_no_other_split(tmp_path: Path) -> None:
    held = {"test": TEXTS[:20], "validation": TEXTS[10:40], "train": TEXTS[:300]}
    for split, texts in held.items():
        (tmp_path / "c" / split).mkdir(parents=True)
        (tmp_path / "c" / split / "a.jsonl").write_bytes(lines(texts))
    data = made(tmp_path / "c", tmp_path / "d")
    expected = {"test": TEXTS[:20], "validation": TEXTS[20:40], "train": TEXTS[40:300]}
    assert {s: sorted(data.texts(s)) for s in SPLITS} == {
        s: sorted(texts) for s, texts in expected.items()
    }


@pytest.mark.parametrize("one_in", [3, 50])
def test_the_held_out_share_is_the_user_s(corpus: Path, tmp_path: Path, one_in: int) -> None:
    data = made(corpus, tmp_path / "d", Streaming(tokenizer="bytes", one_in=one_in))
    held = data.manifest.splits["test"].documents  # type: ignore[union-attr]
    assert 0.3 * len(TEXTS) / one_in < held < 2.2 * len(TEXTS) / one_in


def test_stretches_of_a_file_hold_each_of_its_lines_once(tmp_path: Path) -> None:
    texts = [f"{n} " * (1 + n * n % 700) for n in range(60)]
    (tmp_path / "a.jsonl").write_bytes(lines(texts))
    found = list_inputs(tmp_path, "text", SPLITS)
    assert len(found.units) > 10
    read = [text for unit in found.units for text in read_unit(found.root, unit, "text", tmp_path)]
    assert read == texts


@pytest.mark.parametrize("separator", ["\n\n", "\r\n \r\n", "\n", " é"])
def test_stretches_of_a_long_text_join_to_the_whole(tmp_path: Path, separator: str) -> None:
    text = separator.join(f"paragraph {n} is é" + " long" * (n % 40) for n in range(400))
    (tmp_path / "a.txt").write_bytes(text.encode())
    found = list_inputs(tmp_path / "a.txt", "text", SPLITS)
    assert len(found.units) > 5
    pieces = [p for unit in found.units for p in read_unit(found.root, unit, "text", tmp_path)]
    assert "".join(pieces) == text


def test_parquet_is_read_by_row_groups(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table({"n": list(range(600)), "body": TEXTS})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=50)
    found = list_inputs(tmp_path / "a.parquet", "body", SPLITS)
    assert len(found.units) > 3
    data = made(tmp_path / "a.parquet", tmp_path / "d", Streaming(tokenizer="bytes", field="body"))
    assert list(data.texts("train")) == list(split_documents(TEXTS)["train"])
    with pytest.raises(DataError, match=r"'n' of .* holds int64, not text"):
        list_inputs(tmp_path / "a.parquet", "n", SPLITS)
    ends, data = (pyarrow.py_buffer(bytes([0, 0, 0, 0, 1, 0, 0, 0])), pyarrow.py_buffer(b"\xff"))
    broken = pyarrow.StringArray.from_buffers(1, ends, data)
    for columns, names, message in (
        ([[["a"], ["b", "c"]]], ["text"], "holds list<.*string>, not text"),
        ([["a"], ["b"]], ["text", "text"], "as the name of several columns"),
        ([broken], ["text"], "not a readable Parquet file"),
    ):
        parquet.write_table(pyarrow.table(columns, names=names), tmp_path / "b.parquet")
        with pytest.raises(DataError, match=message):
            made(tmp_path / "b.parquet", tmp_path / "e")


@pytest.mark.parametrize("cut", range(1, 20))
def test_no_cut_of_packed_lines_passes_for_the_whole(tmp_path: Path, cut: int) -> None:
    whole = zstandard.compress(lines(TEXTS[:50])) + zstandard.compress(lines(TEXTS[50:99]))
    (tmp_path / "a.jsonl.zst").write_bytes(whole[: len(whole) * cut // 20])
    with pytest.raises(DataError, match=r"damaged or cut off|is not JSON"):
        made(tmp_path / "a.jsonl.zst", tmp_path / "d")


def test_a_byte_order_mark_before_lines_and_a_name_that_is_no_text_are_read(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    (source / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + lines(TEXTS[:300]))
    os.rename(source / "a.jsonl", os.fsencode(source) + b"/\xff\xfe.jsonl")
    data = made(source, tmp_path / "d")
    assert sum(len(list(data.texts(split))) for split in SPLITS) == 300


def test_hidden_files_and_links_to_nowhere_do_not_make_a_corpus_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "LARGE", 1000)
    (tmp_path / "a.txt").write_text("small")
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "b.txt").write_text("large" * 1000)
    (tmp_path / ".#a.txt").symlink_to("nobody@host:5")
    (tmp_path / "c.txt").symlink_to("nowhere.txt")
    assert not is_large(tmp_path)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"body": "y"}', "line 2 has no text in a field 'text'"),
        ("a.jsonl.gz", gzip.compress(lines(TEXTS))[:-30], "damaged or cut off"),
        ("a.jsonl.zst", b"no zstandard", "damaged or cut off"),
        ("a.jsonl.zst", zstandard.compress(lines(TEXTS))[:-30], "damaged or cut off"),
        (
            "a.jsonl.zst",
            zstandard.compress(lines(["a"])) + zstandard.compress(b"b")[:-2],
            "cut off",
        ),
        ("a.jsonl", lines(TEXTS) + b'{"text": 3}', "the line at byte .* has no text"),
        ("a.jsonl", lines(["ab\ud800"]), "document 0 holds a lone surrogate"),
        ("a.txt", b"ab\xff", "byte 2 is 0xFF"),
        ("a.txt", b"", "has no documents"),
    ],
)
def test_what_cannot_be_read_is_one_error_that_names_the_place(
    tmp_path: Path, name: str, data: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=message):
        made(tmp_path / name, tmp_path / "d")
    assert not (tmp_path / "d").exists()


def test_a_run_that_is_missing_is_named(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare_stream(corpus, tmp_path / "d", BYTES, fixed(BYTES), part=(1, 2))
    work = next(tmp_path.iterdir())
    next((work / "units").glob("*.tokens")).unlink()
    with pytest.raises(DataError, match=r"\.tokens' is missing or cut off; copy it"):
        prepare_stream(corpus, tmp_path / "d", BYTES, fixed(BYTES), part=(2, 2))


def test_a_large_corpus_is_streamed_and_a_small_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(TEXTS))
    assert not is_large(tmp_path) and is_large("hub:owner/name") and not is_large("no-such")
    monkeypatch.setattr(inputs, "LARGE", 1000)
    assert is_large(tmp_path)
    data = prepare(tmp_path / "a.jsonl", out=tmp_path / "d", tokenizer="bytes", shard_tokens=5000)
    assert content(data.folder) == content(made(tmp_path / "a.jsonl", tmp_path / "e").folder)


def test_memory_does_not_grow_with_the_number_of_documents(tmp_path: Path) -> None:
    """What is gathered at once is bounded, whatever a split holds."""
    documents = [(n << 112, np.full(10, n % 7, np.uint16)) for n in range(3000)]
    runs = [spill.write_run(tmp_path / f"{i}", [documents[i::4], [], []]) for i in range(4)]
    counts = spill.count_bins(runs, 0)
    parts = list(spill.read_in_order(runs, 0, counts, 5, 29_990))
    whole = np.concatenate([tokens for _, tokens in documents])[5:29_990]
    assert np.array_equal(np.concatenate(parts), whole) and max(map(len, parts)) <= 1000


class Refusing(Executor):
    """Runs nothing; says how many jobs it was given."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_exception(DataError("no such machine"))
        return future


def test_a_failure_on_an_executor_ends_the_preparation(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such machine"):
        prepare_stream(corpus, tmp_path / "d", BYTES, fixed(BYTES), executor=Refusing())


COMMIT = "c" * 40


@pytest.fixture
def endpoint(tmp_path: Path) -> Iterator[str]:
    """A server on this machine that answers as the hub does for one dataset repository."""
    files = {
        "data/a.jsonl": lines(TEXTS[:300]),
        "data/b.jsonl.gz": gzip.compress(lines(TEXTS[300:])),
        "other/c.jsonl": lines(["not wanted"]),
        "README.md": b"# A dataset",
    }

    def answer(path: str) -> tuple[bytes, int]:
        if path.startswith("/api/datasets/someone/texts"):
            siblings = [{"rfilename": n, "size": len(data)} for n, data in files.items()]
            listing = {"id": "someone/texts", "sha": COMMIT, "siblings": siblings}
            return json.dumps(listing).encode(), 200
        name = path.partition(f"/datasets/someone/texts/resolve/{COMMIT}/")[2]
        return files.get(name, b""), 200 if name in files else 404

    with hub_server(answer, commit=COMMIT) as address:
        yield address


@pytest.mark.parametrize("inside", ["", "@main/data", "/data/*"])
def test_a_dataset_of_the_hub_is_streamed_file_by_file_and_not_kept(
    endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inside: str
) -> None:
    pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(inputs, "HuggingFaceHub", partial(HuggingFaceHub, endpoint=endpoint))
    source = f"hub:someone/texts{inside}"
    data = prepare_stream(source, tmp_path / "d", BYTES, fixed(BYTES))
    assert isinstance(data, Dataset) and data.name == "someone/texts"
    texts = TEXTS if inside else [*TEXTS, "not wanted"]
    assert list(data.texts("train")) == list(split_documents(texts)["train"])
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_what_the_hub_does_not_have_is_one_line(
    endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(inputs, "HuggingFaceHub", partial(HuggingFaceHub, endpoint=endpoint))
    for source, message in (
        ("hub:someone", "is not like hub:OWNER/NAME"),
        ("hub:someone/texts/nothing", r"no \.parquet or \.jsonl files in 'nothing'"),
        ("hub:no/such", "cannot list dataset repository 'no/such'"),
    ):
        with pytest.raises(DataError, match=message):
            list_inputs(source, "text", SPLITS)
