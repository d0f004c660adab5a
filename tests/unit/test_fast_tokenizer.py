"""The fast tokenizer of a Hugging Face folder gives our ids for every text."""

from __future__ import annotations

import io

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from niblick.data.corpus import Corpus, corpora
from niblick.data.prepare import prepare
from niblick.errors import DataError, NiblickError
from niblick.exchange.hf.fast_tokenizer import fast_tokenizer
from niblick.text import spmodel
from niblick.text.learning import TRAINED, train_tokenizer
from niblick.text.spmodel import SPACE
from niblick.text.tokenizer import SentencePieceTokenizer, load_tokenizer

SAMPLES = [
    "", " ", "   ", "a", " a", "a ", "the  end", "\n\n\ttabs", "<s> and </s> <unk> <0x41> <pad>",
    "aaaaaaaaa ------ ======", f"a{SPACE}b {SPACE}{SPACE}c", "naïve café Ωμέγα русский",
    "日本語 中文 한국어",
    "🙂👩‍👩‍👧‍👦🇩🇪", "e\u0301 \u212b ﬁ ½ ① \u200b\u00a0x", "\x00\x01\x7f\u0085",
    "\ue000\uffff\U0010ffff", "x" * 3000, "العربية עברית हिन्दी ไทย",
    "USA's McDonald, iPhone NASAs  A I'm\nThe\tUS TUT ÉCOLE École THE END", "The", "U", "x\r\nTT",
]  # fmt: skip
CASES = st.text(st.sampled_from("aBT U\n-é\ufdd0\ufdd1\ufdd2012" + SPACE), max_size=30)
WORDS = st.text(st.sampled_from("the aoi-=\n" + SPACE + "éß日<s>"), max_size=60)
NAMES = st.lists(st.sampled_from(["<s>", "</s>", "<unk>", "<0x41>", "<", "s", "/", " a"]))
UNKNOWN = 0  # where there are no bytes to spell a character with
EXACT = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
UNIGRAM = {  # as the sentencepiece package trains them
    "unigram": {"vocab_size": 400},
    "unigram-bytes": {"vocab_size": 600, "byte_fallback": True},
    "unigram-exact": {"vocab_size": 600, "byte_fallback": True, **EXACT},
}


@pytest.fixture(scope="module")
def validation() -> list[str]:
    return list(corpora["wiki-vital"]().splits["validation"])[:60]


def trained(texts: list[str], kind: str, **options: object) -> SentencePieceTokenizer:
    """A tokenizer as other tools train them."""
    model, lines = io.BytesIO(), (line for text in texts for line in text.splitlines() if line)
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=lines,
        model_writer=model,
        model_type=kind,
        hard_vocab_limit=False,
        minloglevel=2,
        **options,
    )
    return SentencePieceTokenizer(spmodel.parse(model.getvalue()))


def test_text_whose_bytes_nothing_would_count_is_not_taken_for_data(tmp_path):
    blind = trained(["the cat sat on the mat"] * 9, "bpe", vocab_size=20)
    assert blind.encode_counted("the cat").tolist() == blind.encode_document("the cat").tolist()
    with pytest.raises(DataError, match="no pieces for some characters"):
        blind.encode_counted("the café")
    texts = {split: ["the cat", "the café"] for split in ("train", "validation")}
    with pytest.raises(DataError, match="no pieces for some characters"):
        prepare(Corpus("c", texts), out=tmp_path / "d", tokenizer=blind)


@pytest.fixture(scope="module", params=["bytes", *TRAINED, "fineweb-1024", *UNIGRAM])
def pair(request, validation):
    if request.param in TRAINED:
        own = train_tokenizer(validation[:20], vocab_size=600, **TRAINED[request.param])
    elif request.param in UNIGRAM:
        own = trained(validation[:20], "unigram", **UNIGRAM[request.param])
    else:
        own = load_tokenizer(request.param)
    return own, fast_tokenizer(own)


def test_the_ids_are_ours_on_validation_text_and_on_unicode(pair, validation):
    own, fast = pair
    for text in [*validation, *SAMPLES]:
        assert fast.encode(text, add_special_tokens=False).ids == own.encode(text).tolist(), text
        assert fast.encode(text).ids == own.encode_document(text).tolist()


def test_decoding_gives_the_text_back(pair, validation):
    own, fast = pair
    for text in [*validation[:10], *SAMPLES]:
        ids = own.encode(text).tolist()
        if UNKNOWN not in ids:  # spaces beside it: docs/ecosystem.md
            assert fast.decode(ids) == own.decode(ids)


@settings(max_examples=120, deadline=None)
@given(st.one_of(WORDS, CASES, NAMES.map("".join), st.text(max_size=20)))
def test_the_ids_are_ours_on_any_text(pair, text):
    own, fast = pair
    if not own.lossless and not text.isascii():
        return  # normalisation of odd sequences is the library's own; see docs/ecosystem.md
    assert fast.encode(text, add_special_tokens=False).ids == own.encode(text).tolist()


def test_pieces_that_cannot_be_followed_are_refused():
    model = spmodel.lossless_bpe([SPACE, "é日"], 300)
    with pytest.raises(NiblickError, match="no piece"):
        fast_tokenizer(SentencePieceTokenizer(model))


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("word", {}, "a word tokenizer"),
        ("char", {}, "a char tokenizer"),
        ("unigram", {"user_defined_symbols": ["riv"]}, "user-defined"),
    ],
)
def test_other_tokenizers_are_refused_in_one_line(kind, options, message, validation):
    own = trained(validation[:5], kind, vocab_size=300, **options)
    with pytest.raises(NiblickError, match=message) as refused:
        fast_tokenizer(own)
    assert "\n" not in str(refused.value)


def test_a_unigram_model_whose_pieces_cover_a_control_piece_is_refused(validation):
    model = trained(validation[:5], "unigram", vocab_size=300).model
    model.message.pieces[290].text, model.message.pieces[291].text = b"<s", b"s>"
    with pytest.raises(NiblickError, match="'<s>'"):
        fast_tokenizer(SentencePieceTokenizer(spmodel.parse(model.serialize())))
