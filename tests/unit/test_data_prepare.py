"""From documents to shards, and what a folder of shards refuses to be."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from niblick.cli import main
from niblick.data import inputs
from niblick.data.corpus import Corpus, load_corpus, split_documents, training_part
from niblick.data.dataset import open_dataset
from niblick.data.prepare import prepare, resolve_dataset
from niblick.data.shards import write_shard
from niblick.errors import DataError
from niblick.text import learning
from niblick.text.learning import train_tokenizer
from niblick.text.tokenizer import load_tokenizer

TEXTS = [
    f"The {number}th house of the town\nstands by  the {number % 7} rivers."
    for number in range(120)
]


@dataclass(frozen=True)
class Settings:
    corpus: str
    tokenizer: str = "train"
    development: bool = False
    share: float = 1.0


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for number, text in enumerate(TEXTS):
        (folder / f"{number}.txt").write_text(text, "utf-8")
    return folder


@pytest.mark.parametrize("tokenizer", ["train", "bytes", "fineweb-1024"])
@pytest.mark.parametrize("shard_tokens", [64, 100_000_000])
def test_prepared_shards_hold_every_document_of_every_split(
    corpus: Path, tmp_path: Path, tokenizer: str, shard_tokens: int
) -> None:
    data = prepare(
        corpus,
        out=tmp_path / "d",
        tokenizer=tokenizer,
        vocab_size=300 if tokenizer == "train" else None,
        shard_tokens=shard_tokens,
    )
    for split, texts in load_corpus(corpus).splits.items():
        entry = data.manifest.splits[split]  # type: ignore[union-attr]
        tokens, table = data.tokens(split), data.tokenizer.byte_table
        assert [
            data.tokenizer.decode(tokens[a:b].tolist()) for a, b in data.documents(split)
        ] == list(data.texts(split))
        if data.tokenizer.lossless:
            assert list(data.texts(split)) == list(texts)
            assert table.count(tokens[1:], tokens[:-1]).sum() == entry.bytes
        assert (entry.documents, entry.tokens) == (len(texts), len(tokens))
        assert data.sha256(split) == entry.sha256
        assert len(data.shards(split)) == -(-len(tokens) // shard_tokens)


def test_a_tokenizer_within_words_has_no_piece_of_two_words(corpus: Path, tmp_path: Path) -> None:
    pieces = {}
    for spec in ("train", "train-within-words"):
        data = prepare(corpus, out=tmp_path / spec, tokenizer=spec, vocab_size=300)
        assert list(data.texts("train")) == list(load_corpus(corpus).splits["train"])
        pieces[spec] = [data.tokenizer.token_bytes(token, 2) for token in range(300)]
    assert any(b" " in piece[1:].strip() for piece in pieces["train"])
    assert not any(b" " in piece[1:].strip() for piece in pieces["train-within-words"])


def test_preparing_again_reuses_the_folder_and_other_settings_replace_it(
    corpus: Path, tmp_path: Path
) -> None:
    out = tmp_path / "d"
    first = prepare(corpus, out=out, vocab_size=300)
    stamp = (out / "manifest.json").stat().st_mtime_ns
    assert prepare(corpus, out=out, vocab_size=300).sha256("train") == first.sha256("train")
    assert (out / "manifest.json").stat().st_mtime_ns == stamp
    assert prepare(corpus, out=out, vocab_size=310).tokenizer.vocab_size == 310
    assert [entry.name for entry in tmp_path.iterdir()] == ["d"]


def test_processes_that_prepare_the_same_data_at_once_all_get_it(
    corpus: Path, tmp_path: Path
) -> None:
    with ThreadPoolExecutor(4) as pool:
        made = list(
            pool.map(lambda _: prepare(corpus, out=tmp_path / "d", tokenizer="bytes"), range(4))
        )
    assert len({data.sha256("train") for data in made}) == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["d"]


def test_a_damaged_prepared_folder_is_prepared_anew(corpus: Path, tmp_path: Path) -> None:
    data = prepare(corpus, out=tmp_path / "d", tokenizer="bytes")
    before = data.sha256("train")
    data.shards("train")[0].write_bytes(b"short")
    assert prepare(corpus, out=tmp_path / "d", tokenizer="bytes").sha256("train") == before


def test_a_folder_of_someone_else_s_is_never_replaced(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("keep me")
    with pytest.raises(DataError, match="not empty"):
        prepare(corpus, out=tmp_path, tokenizer="bytes")
    with pytest.raises(DataError, match="is a file"):
        prepare(corpus, out=tmp_path / "precious.txt", tokenizer="bytes")
    assert (tmp_path / "precious.txt").read_text() == "keep me"


@pytest.mark.parametrize("streams", [False, True])
def test_a_link_leads_to_the_folder_that_is_written_and_the_current_one_is_refused(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, streams: bool
) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk")
    if streams:
        monkeypatch.setattr(inputs, "LARGE", 1)
    prepare(corpus, out=tmp_path / "link", tokenizer="bytes")
    assert (tmp_path / "link").is_symlink() and open_dataset(tmp_path / "disk").shards("train")
    assert {path.name for path in tmp_path.iterdir()} == {"disk", "link"}
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(DataError, match=r"output '\.' is the current folder"):
        prepare(corpus, out=Path(), tokenizer="bytes")


def test_a_failure_half_way_leaves_nothing_behind(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, tokens: object) -> None:
        raise DataError("cannot write: No space left on device")

    monkeypatch.setattr("niblick.data.prepare.write_shard", full)
    with pytest.raises(DataError, match="No space"):
        prepare(corpus, out=tmp_path / "d", tokenizer="bytes")
    assert list(tmp_path.iterdir()) == []


def test_a_vocabulary_size_that_a_given_tokenizer_does_not_have_is_refused(
    corpus: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="bytes has 260 ids, not 512"):
        prepare(corpus, out=tmp_path / "d", tokenizer="bytes", vocab_size=512)


@pytest.mark.parametrize("tokenizer", ["bytes", "train"])
def test_a_lone_surrogate_in_a_document_is_refused(tmp_path: Path, tokenizer: str) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "ab\\ud800"}\n' * 40)
    with pytest.raises(DataError, match="document 0 holds a lone surrogate"):
        prepare(tmp_path / "a.jsonl", out=tmp_path / "d", tokenizer=tokenizer)


def test_a_recipe_resolves_to_text_shards_or_an_error(corpus: Path, tmp_path: Path) -> None:
    made = resolve_dataset(Settings(str(corpus)), vocab_size=300, cache=tmp_path / "cache")
    again = resolve_dataset(Settings(str(made.folder)), vocab_size=300, cache=tmp_path / "cache")
    assert again.sha256("train") == made.sha256("train") and again.folder == made.folder
    with pytest.raises(DataError, match=r"300 ids.*vocab_size is 512"):
        resolve_dataset(Settings(str(made.folder)), vocab_size=512, cache=tmp_path / "cache")
    with pytest.raises(DataError, match="written with tokenizer"):
        resolve_dataset(
            Settings(str(made.folder), "fineweb-1024"), vocab_size=1024, cache=tmp_path / "cache"
        )


def test_development_documents_are_held_out_in_place_of_the_others(tmp_path: Path) -> None:
    texts = [f"document {n} says so" for n in range(200)]
    whole = Corpus("texts", split_documents(texts))
    part = training_part(whole, development=True, share=0.5)
    held = [t for t in whole.splits["train"] if int(sha256(t.encode()).hexdigest(), 16) % 20 == 2]
    left = [t for t in whole.splits["train"] if t not in held]
    assert 0 < len(held) < 30 and list(part.splits["validation"]) == held
    assert list(part.splits["train"]) == left[: round(len(left) / 2)] and "test" not in part.splits
    assert training_part(whole, development=False, share=1.0).splits == whole.splits


def test_parts_of_a_corpus_are_prepared_apart_and_shards_have_none(
    corpus: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    whole = resolve_dataset(Settings(str(corpus)), vocab_size=300, cache=cache)
    half = resolve_dataset(Settings(str(corpus), share=0.5), vocab_size=300, cache=cache)
    assert half.folder != whole.folder
    assert half.token_count("train") < whole.token_count("train")
    assert half.sha256("validation") != ""
    with pytest.raises(DataError, match="holds shards"):
        resolve_dataset(Settings(str(whole.folder), share=0.5), vocab_size=300, cache=cache)
    with pytest.raises(DataError, match="no training documents"):
        training_part(Corpus("x", {"train": ["a"]}), development=False, share=0.1)


def test_a_bare_folder_in_the_challenge_s_layout_opens_with_the_challenge_s_tokenizer(
    tmp_path: Path,
) -> None:
    tokenizer = load_tokenizer("fineweb-1024")
    tokens = np.concatenate([tokenizer.encode_document(text) for text in TEXTS])
    write_shard(tmp_path / "fineweb_train_000000.bin", tokens[:500])
    write_shard(tmp_path / "fineweb_train_000001.bin", tokens[500:])
    write_shard(tmp_path / "fineweb_val_000000.bin", tokens)
    data = open_dataset(tmp_path)
    assert data.tokenizer.name == "fineweb-1024" and data.manifest is None
    assert np.array_equal(data.tokens("train"), tokens)
    assert len(list(data.texts("train"))) == len(list(data.documents("validation"))) == len(TEXTS)
    with pytest.raises(DataError, match="no 'test' split; it has: train, validation"):
        data.tokens("test")


def test_rows_are_read_across_shards(corpus: Path, tmp_path: Path) -> None:
    data = prepare(corpus, out=tmp_path / "d", tokenizer="bytes", shard_tokens=64)
    tokens = np.array(data.tokens("train"))
    starts = [0, 1, 60, 64, len(tokens) - 150]
    assert np.array_equal(
        data.rows("train", starts, 150), [tokens[start : start + 150] for start in starts]
    )
    for bad in (-1, len(tokens) - 149):
        with pytest.raises(DataError, match="outside"):
            data.rows("train", [bad], 150)


def test_shards_of_another_tokenizer_are_refused(tmp_path: Path) -> None:
    write_shard(tmp_path / "fineweb_val_000000.bin", [1, 5, 2000])
    with pytest.raises(DataError, match="token id 2000"):
        open_dataset(tmp_path)
    with pytest.raises(DataError, match="token id 2000"):
        open_dataset(tmp_path, train_tokenizer(TEXTS, vocab_size=300))


def test_a_truncated_shard_and_a_changed_tokenizer_are_found_on_opening(
    corpus: Path, tmp_path: Path
) -> None:
    data = prepare(corpus, out=tmp_path / "d", vocab_size=300)
    shard = data.shards("validation")[0]
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-2])
    with pytest.raises(DataError, match=r"niblick_val_000000\.bin"):
        open_dataset(tmp_path / "d")
    shard.write_bytes(whole)
    (tmp_path / "d" / "tokenizer.model").write_bytes(load_tokenizer("bytes").to_bytes())
    with pytest.raises(DataError, match="not the one of its manifest"):
        open_dataset(tmp_path / "d")


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"format": "niblick-shards", "version": 9}',
        '{"format": "niblick-shards", "version": 1, "splits": {"train": 3}}',
    ],
)
def test_a_damaged_manifest_is_one_clear_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(DataError, match=r"manifest\.json"):
        open_dataset(tmp_path)


@pytest.mark.parametrize("size", [0, -1, 258, 65537])
def test_a_vocabulary_out_of_range_is_refused(corpus: Path, tmp_path: Path, size: int) -> None:
    with pytest.raises(DataError, match=f"vocabulary of {size}"):
        prepare(corpus, out=tmp_path / "d", vocab_size=size)
    assert not (tmp_path / "d").exists()


def test_the_trainer_reads_a_bounded_sample_in_bounded_pieces() -> None:
    line = "one long line without an end " * 1_400_000
    sample = learning._sample([line, "short\n"], learning.SAMPLE)
    assert 10_000_000 < sum(map(len, sample)) <= learning.SAMPLE + learning._PIECE
    assert max(map(len, sample)) <= learning._PIECE
    assert learning._sample(TEXTS, learning.SAMPLE) == TEXTS


def test_a_very_long_text_is_encoded_in_parts_that_decode_to_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trained = train_tokenizer(TEXTS, vocab_size=300)
    text = "".join(TEXTS) + "\u2581 é" * 9
    whole = trained.encode(text).tolist()
    monkeypatch.setattr("niblick.text.tokenizer._ENCODED", 7)
    parts = trained.encode(text).tolist()
    assert parts != whole and trained.decode(parts) == trained.decode(whole) == text


def test_a_corpus_without_a_validation_document_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c").mkdir()
    copies = [" ".join(TEXTS) + " the end" * number for number in range(3)]
    for number, text in enumerate(copies):
        (tmp_path / "c" / f"{number}.txt").write_text(text)
    with pytest.raises(SystemExit) as ended:
        main(["data", "prepare", f"{tmp_path}/c", "--out", f"{tmp_path}/d", "--tokenizer", "bytes"])
    assert ended.value.code == 0
    assert "note: no document fell into validation" in capsys.readouterr().err
    with pytest.raises(DataError, match=r"no 'validation' split.*One document in 20"):
        open_dataset(tmp_path / "d").shards("validation")
