"""The compiled encoder gives sentencepiece's ids for every text, or is not used."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from niblick.data.corpus import corpora
from niblick.text import spmodel
from niblick.text.case import LITERAL, lowered
from niblick.text.encoder import compile_encoder, native_encoder
from niblick.text.learning import train_tokenizer
from niblick.text.spmodel import SPACE
from niblick.text.tokenizer import SentencePieceTokenizer, load_tokenizer

KINDS = ("across words", "within words", "fineweb-1024")
LETTERS = "aab  éß日\n"
SPECIALS = " \t\n\r\0\x7f\x85\xa0\u200b\u2028\u3000\ufeffａé語😀\u0301ﬁ½①Åå<s>the of"


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    if not compile_encoder():
        pytest.skip("no C compiler")


@cache
def texts() -> list[str]:
    return list(corpora["wiki-vital"]().splits["validation"])[:120]


@cache
def tokenizer(kind: str) -> SentencePieceTokenizer:
    if kind == "fineweb-1024":
        made = load_tokenizer(kind)
    else:
        made = train_tokenizer(texts()[:60], vocab_size=700, across_words=kind == "across words")
    assert isinstance(made, SentencePieceTokenizer)
    return made


def same(made: SentencePieceTokenizer, text: str) -> None:
    assert made._native is not None
    if made.lossless:
        text = text.replace(SPACE, "")  # spelled in bytes before either is asked
    found = made._native.encode(text)
    assert found is not None and found.tolist() == list(made._engine.Encode(text))


@pytest.mark.parametrize("kind", KINDS)
def test_prose_and_long_runs_have_the_library_s_ids(kind: str) -> None:
    made = tokenizer(kind)
    runs = ("a" * 300, " " * 200 + "x", "-" * 999, "the" * 400, "".join(texts()), "日本語 " * 90)
    for text in (*texts(), *runs):
        same(made, text)


@pytest.mark.parametrize("kind", KINDS)
@given(text=st.text(max_size=40) | st.text(alphabet=SPECIALS, max_size=30))
@example(text=f" {SPACE} {SPACE}{SPACE}  a{SPACE}")
@example(text="   ")
@example(text="\0 a\0b\0")
@settings(max_examples=200, deadline=None)
def test_any_text_has_the_library_s_ids(kind: str, text: str) -> None:
    same(tokenizer(kind), text)


@given(
    pieces=st.lists(st.text(alphabet=LETTERS, min_size=1, max_size=6), max_size=25, unique=True),
    text=st.text(alphabet=LETTERS, max_size=120),
)
@settings(max_examples=150, deadline=None)
def test_any_list_of_pieces_encodes_as_the_library_does(pieces: list[str], text: str) -> None:
    learned = dict.fromkeys(piece.replace(" ", SPACE) for piece in [*pieces, " "])
    same(SentencePieceTokenizer(spmodel.lossless_bpe(list(learned), 300)), text)


@given(
    text=st.text(max_size=40)
    | st.text(alphabet="aBT U\n-é\u2028@[`{ÁİK", max_size=40).map(lambda text: text * 60)
)
@example(text="The USA's McDonald, iPhone NASAs\nA\tB École ÉCOLE")
@example(text="A")
@example(text="aB" * 5000)
@settings(max_examples=150, deadline=None)
def test_capitals_become_marks_as_patterns_make_them(text: str) -> None:
    made = tokenizer("across words")
    text = LITERAL.sub("", text)
    found = made._native.encode(text, lower=True)
    assert found is not None and found.tolist() == list(made._engine.Encode(lowered(text)))


def test_models_that_it_could_encode_otherwise_are_left_to_the_library() -> None:
    model = spmodel.lossless_bpe([SPACE, "ab", "<unused0"], 300)
    assert native_encoder(model) is None  # "<unused0" and ">" would make an unused piece
    model = spmodel.lossless_bpe([SPACE, "ab"], 300)
    assert native_encoder(model) is not None
    model.message.trainer.model_type = 1
    assert native_encoder(model) is None


def test_the_library_encodes_where_there_is_no_compiled_code(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = tokenizer("across words")
    # Before it is taken away: other tests have this tokenizer, too.
    assert before._native is not None
    monkeypatch.setattr("niblick.text.tokenizer.native_encoder", lambda model: None)
    without = SentencePieceTokenizer(before.model)
    for text in texts()[:20]:
        assert without.encode(text).tolist() == before.encode(text).tolist()
    assert without._native is None
