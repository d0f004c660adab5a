"""What a tokenizer is made of, and which ones are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import sentencepiece

from niblick.errors import DataError
from niblick.text import spmodel
from niblick.text.learning import TRAINED, train_tokenizer
from niblick.text.tokenizer import SentencePieceTokenizer, load_tokenizer

TEXTS = ["the fox and the dog of the house", "and the house of the fox\nof the town"] * 20


each_kind = pytest.mark.parametrize("kind", TRAINED)


@each_kind
@pytest.mark.parametrize("size", [261, 262, 300, 1000])
def test_a_trained_vocabulary_has_exactly_the_size_asked_for(size: int, kind: str) -> None:
    assert train_tokenizer(TEXTS, vocab_size=size, **TRAINED[kind]).vocab_size == size


@each_kind
def test_the_same_texts_give_the_same_tokenizer(kind: str) -> None:
    texts = (iter(TEXTS) for _ in range(2))
    first, second = (train_tokenizer(each, vocab_size=300, **TRAINED[kind]) for each in texts)
    assert first.sha256 == second.sha256 and first.to_bytes() == second.to_bytes()


def test_a_vocabulary_of_bytes_and_a_space_is_the_smallest() -> None:
    for unigram in (False, True):
        made = train_tokenizer(TEXTS, vocab_size=259, unigram=unigram)
        assert made.vocab_size == 259 and made.decode(made.encode("a b")) == "a b"


@pytest.mark.parametrize("unigram", [False, True])
@pytest.mark.parametrize("size", [300, 1000])
def test_every_serialised_form_rebuilds_the_same_tokenizer(
    size: int, unigram: bool, tmp_path: Path
) -> None:
    made = train_tokenizer(TEXTS, vocab_size=size, unigram=unigram)
    (tmp_path / "t.model").write_bytes(made.to_file_bytes())
    for again in (load_tokenizer(made.to_bytes()), load_tokenizer(tmp_path / "t.model")):
        assert again.sha256 == made.sha256
        assert again.encode(TEXTS[0]).tolist() == made.encode(TEXTS[0]).tolist()


def test_a_packed_trained_tokenizer_is_many_times_smaller_than_its_model_file() -> None:
    made = train_tokenizer(TEXTS, vocab_size=300)
    assert len(made.to_bytes()) * 10 < len(made.to_file_bytes())


@pytest.mark.parametrize("unigram", [False, True])
def test_sentencepiece_itself_reads_the_file_and_decodes_the_ids(unigram: bool) -> None:
    made = train_tokenizer(TEXTS, vocab_size=300, unigram=unigram)
    library = sentencepiece.SentencePieceProcessor(model_proto=made.to_file_bytes())
    text = "the  fox, of\nthe town é"
    assert library.Encode(text) == made.encode(text).tolist()
    assert library.Decode(made.encode(text).tolist()) == text


def test_a_lone_surrogate_is_refused_by_name() -> None:
    for made in (load_tokenizer("bytes"), train_tokenizer(TEXTS, vocab_size=300)):
        with pytest.raises(DataError, match=r"U\+D800 at character 2"):
            made.encode("ab\ud800c")


def test_text_the_trainer_reserves_for_itself_does_not_stop_training() -> None:
    made = train_tokenizer(["\u2585 and\0 the \u2585 fox", "\0\0"] * 5, vocab_size=300)
    assert made.decode(made.encode("\u2585 and\0").tolist()) == "\u2585 and\0"


@pytest.mark.parametrize("size", [0, 258, 65537])
def test_a_vocabulary_out_of_range_is_refused(size: int) -> None:
    with pytest.raises(DataError, match=str(size)):
        train_tokenizer(TEXTS, vocab_size=size)


def test_no_text_to_train_on_is_an_error() -> None:
    with pytest.raises(DataError, match="no text"):
        train_tokenizer(["", "\n"], vocab_size=300)


def test_a_model_without_dummy_prefix_counts_a_document_s_leading_space() -> None:
    model = spmodel.lossless_bpe(["\u2581a", "\u2581"], 300).with_dummy_prefix(False)
    made = SentencePieceTokenizer(model)
    ids = made.encode_document(" a b")
    assert (
        made.lossless and made.decode(ids.tolist()) == made.reference_decode(ids.tolist()) == " a b"
    )
    assert made.byte_table.count(ids[1:], ids[:-1]).sum() == 4


def test_published_accounting_bugs_do_not_occur() -> None:
    made = train_tokenizer(TEXTS, vocab_size=1000)
    table, bos = made.byte_table, made.bos_id
    the = made.encode("the")[0]
    assert [int(table.count([the], [before])[0]) for before in (bos, the)] == [
        3,
        4,
    ]  # one space, not two
    byte = int(made.encode("Q")[-1])
    assert table.count([byte], [the])[0] == 1  # a byte piece is one byte, not three
    assert table.count([bos, 0, 999], [the] * 3).tolist() == [0, 0, 0]
    assert spmodel.SPACE in {piece.text for piece in spmodel.parse(made.to_file_bytes()).pieces}


def test_ids_outside_the_vocabulary_are_refused() -> None:
    with pytest.raises(DataError, match="300"):
        train_tokenizer(TEXTS, vocab_size=300).decode([5, 300])
    with pytest.raises(DataError, match="-1"):
        load_tokenizer("bytes").decode([-1])


def test_files_that_are_no_tokenizers_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "text.model"
    path.write_text("this is not a model")
    for spec in (path, tmp_path / "absent.model", tmp_path, "no-such-tokenizer"):
        with pytest.raises(DataError):
            load_tokenizer(spec)
    with pytest.raises(DataError, match="kind"):
        load_tokenizer("bytes", kind="sentencepiece")


def test_a_packed_tokenizer_that_expands_without_end_is_refused() -> None:
    import lzma
    import zlib

    bomb = bytes(spmodel.MAX_MODEL_BYTES * 2)
    for packed in (b"nT\x01" + zlib.compress(bomb, 9), b"nT\x02" + lzma.compress(bomb)):
        with pytest.raises(DataError, match="expands"):
            load_tokenizer(packed)


def test_models_that_cannot_be_accounted_for_are_refused() -> None:
    learned = spmodel.lossless_bpe(["\u2581"], 300)
    suffix = spmodel.lossless_bpe(["\u2581"], 300)
    suffix.message.trainer.space_as_suffix = True
    with pytest.raises(DataError, match="end of words"):
        SentencePieceTokenizer(suffix)
    learned.message.pieces[1].text = b"<x>"
    with pytest.raises(DataError, match="<s>"):
        SentencePieceTokenizer(learned)


def test_an_opened_list_of_pieces_is_the_model_that_was_packed() -> None:
    texts = ["\u2581", "a", "\u2581a\u00e9", "x" * 126, "y" * 127, "z" * 255, "\U00010348" * 63]
    for size in (258 + len(texts), 1000):
        model = spmodel.lossless_bpe(texts, size)
        opened = spmodel.unpack(spmodel.pack(model))
        assert opened.pieces == model.pieces and opened.message == model.message
        for on in (True, False):
            one, other = model.with_dummy_prefix(on), opened.with_dummy_prefix(on)
            assert one.serialize() == other.serialize()
            for name in ("kind_name", "space_as_suffix", "dummy_prefix", "identity", "lossless"):
                assert getattr(one, name) == getattr(other, name)
    scored = [(text, -score / 4) for score, text in enumerate(texts)]
    model = spmodel.lossless_unigram(scored, 1000)
    opened = spmodel.unpack(spmodel.pack(model))
    assert opened.message == model.message and opened.serialize() == model.serialize()
    assert opened.kind_name == model.kind_name == "unigram"
    spaceless = spmodel.lossless_bpe(["a"], 300)
    assert not spmodel.unpack(spmodel.pack(spaceless)).lossless and not spaceless.lossless


def test_scores_that_a_list_cannot_hold_are_packed_with_the_whole_model() -> None:
    for second in (-0.01, 1.0, -90.0):  # between the steps, rising, a fall that no byte holds
        model = spmodel.lossless_unigram([("\u2581", 0.0), ("a", second)], 300)
        packed = spmodel.pack(model)
        assert packed.startswith(b"nT\x02") and spmodel.unpack(packed).message == model.message


def test_byte_tokens_follow_the_challenge_s_layout() -> None:
    made = load_tokenizer("bytes")
    assert (made.vocab_size, made.bos_id, made.lossless) == (260, 1, True)
    assert made.encode_document("Aé").tolist() == [1, 65 + 4, 0xC3 + 4, 0xA9 + 4]
    assert np.array_equal(made.byte_table.count([1, 69, 200], [0, 1, 69]), [0, 1, 1])
