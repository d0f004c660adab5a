"""The fast tokenizer of a Hugging Face folder gives our ids for every text."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from niblick.data.corpus import corpora
from niblick.errors import NiblickError
from niblick.exchange.hf.fast_tokenizer import fast_tokenizer
from niblick.text import spmodel
from niblick.text.bpe import train_tokenizer
from niblick.text.spmodel import SPACE
from niblick.text.tokenizer import SentencePieceTokenizer, load_tokenizer

SAMPLES = [
    "", " ", "   ", "a", " a", "a ", "the  end", "\n\n\ttabs", "<s> and </s> <unk> <0x41> <pad>",
    "aaaaaaaaa ------ ======", f"a{SPACE}b {SPACE}{SPACE}c", "naïve café Ωμέγα русский",
    "日本語 中文 한국어",
    "🙂👩‍👩‍👧‍👦🇩🇪", "e\u0301 \u212b ﬁ ½ ① \u200b\u00a0x", "\x00\x01\x7f\u0085",
    "\ue000\uffff\U0010ffff", "x" * 3000, "العربية עברית हिन्दी ไทย",
]  # fmt: skip
WORDS = st.text(st.sampled_from("the aoi-=\n" + SPACE + "éß日<s>"), max_size=60)


@pytest.fixture(scope="module")
def validation() -> list[str]:
    return list(corpora["wiki-vital"]().splits["validation"])[:60]


@pytest.fixture(scope="module", params=["bytes", "bpe", "words", "fineweb-1024"])
def pair(request, validation):
    if request.param in ("bpe", "words"):
        crossing = request.param == "bpe"
        own = train_tokenizer(validation[:20], vocab_size=600, across_words=crossing)
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
        assert fast.decode(ids) == own.decode(ids)


@settings(max_examples=120, deadline=None)
@given(st.one_of(WORDS, st.text(max_size=20)))
def test_the_ids_are_ours_on_any_text(pair, text):
    own, fast = pair
    if not own.lossless and not text.isascii():
        return  # normalisation of odd sequences is the library's own; see docs/ecosystem.md
    assert fast.encode(text, add_special_tokens=False).ids == own.encode(text).tolist()


def test_pieces_that_cannot_be_followed_are_refused():
    model = spmodel.lossless_bpe([SPACE, "é日"], 300)
    with pytest.raises(NiblickError, match="no piece"):
        fast_tokenizer(SentencePieceTokenizer(model))
