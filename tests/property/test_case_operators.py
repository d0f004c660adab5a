"""Case operators: a word has the same pieces in every case; marks change no text and no count."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from niblick.errors import DataError
from niblick.text import spmodel
from niblick.text.case import CAPS, MARKS, TITLE, CaseTokenizer, lowered
from niblick.text.learning import train_tokenizer
from niblick.text.tokenizer import SentencePieceTokenizer, load_tokenizer, stored

PROSE = [
    "The President of France and the President of the United States met in Paris.",
    "UNESCO and the FBI are not the same; McDonald has an iPhone.\nThe end of the USA's war.",
    "the united states of america and the kingdom of france and the united kingdom",
]
WORDS = st.lists(
    st.sampled_from(
        ["The", " the", " United", " USA", "A", "a", " ", "\n", "\t", "\r\n", "'s", "é", "É", "İ",
         "\u212a", "ﬁ", "McD", "iP", "1", "^", "`", TITLE, CAPS, "\u2581", "\0"]
    ),
    max_size=12,
).map("".join)  # fmt: skip
TEXTS = WORDS | st.text(max_size=30)


both_kinds = pytest.mark.parametrize("unigram", [False, True], ids=["bpe", "unigram"])


@cache
def made(unigram: bool = False) -> CaseTokenizer:
    found = train_tokenizer(PROSE * 3, vocab_size=420, case=True, unigram=unigram)
    assert isinstance(found, CaseTokenizer)
    return found


def pieces(text: str, unigram: bool) -> list[str]:
    model = made(unigram).plain.model
    return [model.pieces[token].text.replace("\u2581", "_") for token in made(unigram).encode(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("of France", "of^ france"),
        ("The USA's McDonald", "^the` usa's^ mc^donald"),
        ("iPhone NASAs", "i^phone^ n^a^s^as"),
        ("A I'm\nThe\tX", "^a^ i'm\n^the\t^x"),
        ("  The A1 B-C AB-c", " ^ the^ a1^ b-^c` ab-c"),
        ("École ÉCOLE \u0130 \u212aB", "École É`cole \u0130 \u212a^b"),
    ],
)
def test_marks_stand_before_the_space_of_a_word(text: str, expected: str) -> None:
    assert lowered(text) == expected.replace("^", TITLE).replace("`", CAPS)


def test_text_without_capitals_is_left_as_it_is() -> None:
    assert lowered("no capitals, ^ and ` Ä\u212a") == "no capitals, ^ and ` Ä\u212a"


@both_kinds
@pytest.mark.parametrize("word", ["united", "president", "zq", "a"])
def test_a_word_has_the_same_pieces_in_every_case(word: str, unigram: bool) -> None:
    small = pieces(word, unigram)
    assert pieces(word.title(), unigram) == [TITLE, *small]
    assert pieces(word.upper(), unigram) == [CAPS if len(word) > 1 else TITLE, *small]


@both_kinds
@given(TEXTS)
@example("The")
@example(" The")
@example(f"{TITLE}A{CAPS}B\u2581C")
@example("ABC\u2581d ABC\0d")
@settings(max_examples=200, deadline=None)
def test_every_text_comes_back_and_its_bytes_are_counted(unigram: bool, text: str) -> None:
    own = made(unigram)
    ids = own.encode_document(text)
    assert own.decode(ids.tolist()) == text == own.reference_decode(ids.tolist())
    counts = own.byte_table.count(ids[1:], ids[:-1])
    assert int(counts.sum()) == len(text.encode())
    assert not counts[np.isin(ids[1:], [own.title, own.caps])].any()


TOKENS = st.lists(st.sampled_from([0, 1, 258, 259]) | st.integers(0, 419), min_size=1, max_size=20)


@both_kinds
@given(TOKENS, st.integers(0, 20))
@settings(max_examples=200, deadline=None)
def test_any_tokens_decode_the_same_at_once_one_by_one_and_from_any_place(
    unigram: bool, ids: list[int], cut: int
) -> None:
    own = made(unigram)
    whole = own.decode_bytes(ids)
    decoder = own.byte_decoder()
    assert b"".join(map(decoder.push, ids)) == whole
    assert own.decode_bytes(ids[:cut]) + own.decode_bytes(ids[cut:], ids[:cut]) == whole
    for at, token in enumerate(ids):
        alone = own.byte_decoder(ids[:at])
        assert own.decode_bytes(ids[:at]) + alone.peek(token) == own.decode_bytes(ids[: at + 1])
    stream = np.array([1, *ids])
    assert own.byte_table.count(stream[1:], stream[:-1]).sum() == len(whole)


def test_a_stream_holds_nothing_back_and_goes_on_inside_a_word() -> None:
    following = next(made().plain.encode_parts("ted and"))
    for prompt, expected in (("the UNI", "TED and"), ("the Uni", "ted and"), ("uni", "ted and")):
        stream = made().decode_stream(made().encode_document(prompt).tolist())
        given_out = [stream.push(int(token)) for token in following]
        assert "".join(given_out) == expected and all(given_out)


@both_kinds
def test_no_piece_holds_a_mark_or_a_capital_and_the_vocabulary_is_exact(unigram: bool) -> None:
    texts = [*PROSE * 3, f"of{TITLE} the {CAPS}of{TITLE} the {CAPS}"]
    for size in (261, 262, 300, 1000):
        found = train_tokenizer(texts, vocab_size=size, case=True, unigram=unigram)
        assert isinstance(found, CaseTokenizer)
        normal = [p.text for p in found.plain.model.pieces if p.kind == spmodel.NORMAL]
        assert found.vocab_size == len(found.plain.model.pieces) == size
        assert [text for text in normal if set(text) & set(MARKS)] == [*MARKS]
        assert not any(letter.isascii() and letter.isupper() for letter in "".join(normal))
    with pytest.raises(DataError, match="261 to"):
        train_tokenizer(texts, vocab_size=260, case=True)


@both_kinds
def test_it_is_stored_in_a_few_bytes_and_read_back(unigram: bool) -> None:
    own, name = made(unigram), f"case-{'unigram' if unigram else 'bpe'}-420"
    again = load_tokenizer(own.to_bytes())
    assert (again.sha256, again.name, again.kind) == (own.sha256, name, "case")
    assert again.sha256 != own.plain.sha256
    text = "The USA's McDonald"
    assert again.encode(text).tolist() == own.encode(text).tolist()
    assert len(again.to_bytes()) < len(own.plain.to_bytes()) + 10 < 1000


def test_what_cannot_be_read_is_refused_in_one_line() -> None:
    plain = spmodel.pack(train_tokenizer(PROSE, vocab_size=300).model)
    inside = spmodel.pack(spmodel.lossless_bpe([*MARKS, f"a{TITLE}", "\u2581"], 300))
    for state, message in (
        (b"", "train-case"),
        (plain, "as its own piece"),
        (inside, "as its own piece"),
        (b"nT\x01damaged", "tokenizer"),
    ):
        with pytest.raises(DataError, match=message) as refused:
            load_tokenizer(stored("case", state))
        assert "\n" not in str(refused.value)


def test_it_encodes_the_same_without_compiled_code(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [*PROSE, "".join(PROSE) * 99]
    expected = [made().encode(text).tolist() for text in texts]  # other tests have it, too
    monkeypatch.setattr("niblick.text.tokenizer.native_encoder", lambda model: None)
    without = CaseTokenizer(SentencePieceTokenizer(made().plain.model))
    for text, tokens in zip(texts, expected, strict=True):
        assert without.encode(text).tolist() == tokens
