"""Tokenizers give back every text and count every byte."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from niblick.errors import DataError
from niblick.text.learning import train_tokenizer
from niblick.text.tokenizer import Tokenizer, load_tokenizer

PROSE = [
    (
        "The quick brown fox jumps over the lazy dog.\nThe dog sleeps.\n\n  Then it wakes, and the"
        " fox is gone."
    ),
    "Café über naïve: 1994, 1995 and 1996 — “quoted” text, and the fox of the north of the town.",
    "the cat of the house\tand the dog of the house and the cat of the town of the north",
]
SPECIALS = " \n\t\r\0\u2581\u2585\ufeff\u2028\x85\x7fab<>é語😀\u0301AÉUS\ufdd0\ufdd1"
texts = st.text(max_size=40) | st.text(alphabet=SPECIALS, max_size=20) | st.sampled_from(PROSE)
KINDS = ("across words", "within words", "case", "bytes")


@cache
def tokenizer(kind: str) -> Tokenizer:
    if kind in ("bytes", "fineweb-1024"):
        return load_tokenizer(kind)
    across = kind != "within words"
    return train_tokenizer(PROSE * 3, vocab_size=400, across_words=across, case=kind == "case")


def counted(made: Tokenizer, ids: np.ndarray) -> int:
    return int(made.byte_table.count(ids[1:], ids[:-1]).sum())


@pytest.mark.parametrize("kind", KINDS)
@given(text=texts)
@example(text="\u2581 \u2581\u2581a\u2581")
@example(text="<s> <unk> <0x41> <unused0>")
@example(text="\n\n leading and  double  spaces ")
@settings(max_examples=150, deadline=None)
def test_any_text_comes_back_and_its_bytes_are_counted(kind: str, text: str) -> None:
    made = tokenizer(kind)
    ids = made.encode_document(text)
    assert made.decode(ids.tolist()) == text
    assert made.decode(made.encode(text).tolist()) == text
    assert made.reference_decode(ids.tolist()) == text
    assert counted(made, ids) == len(text.encode())


@pytest.mark.parametrize("kind", KINDS)
@given(documents=st.lists(texts, min_size=1, max_size=4))
@settings(max_examples=50, deadline=None)
def test_documents_in_one_stream_count_and_decode_as_they_do_alone(
    kind: str, documents: list[str]
) -> None:
    made = tokenizer(kind)
    stream = np.concatenate([made.encode_document(text) for text in documents])
    assert made.decode(stream.tolist()) == "".join(documents)
    assert counted(made, stream) == len("".join(documents).encode())


@pytest.mark.parametrize("kind", [*KINDS, "fineweb-1024"])
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_any_token_sequence_counts_the_bytes_it_decodes_to(kind: str, data: st.DataObject) -> None:
    made = tokenizer(kind)
    ids = np.array(
        data.draw(st.lists(st.integers(0, made.vocab_size - 1), min_size=1, max_size=30))
    )
    stream = np.concatenate([[made.bos_id], ids])
    assert counted(made, stream) == len(made.decode_bytes(stream.tolist()))


@pytest.mark.parametrize("kind", KINDS)
@given(text=texts)
@settings(max_examples=50, deadline=None)
def test_a_stream_decodes_token_by_token_to_the_same_text(kind: str, text: str) -> None:
    made = tokenizer(kind)
    stream = made.decode_stream()
    pieces = [stream.push(token) for token in made.encode_document(text).tolist()]
    assert "".join(pieces) + stream.flush() == text
    assert "\ufffd" in text or not any("\ufffd" in piece for piece in pieces)


@given(text=texts)
@settings(max_examples=80, deadline=None)
def test_the_challenge_tokenizer_counts_the_bytes_of_what_it_decodes_to(text: str) -> None:
    made = tokenizer("fineweb-1024")
    ids = made.encode_document(text)
    assert made.decode(ids.tolist()) == made.reference_decode(ids.tolist())
    assert counted(made, ids) == len(made.decode(ids.tolist()).encode())


@given(noise=st.binary(max_size=60), cut=st.integers(0, 400))
@settings(max_examples=60, deadline=None)
def test_damaged_tokenizer_bytes_are_refused_with_one_clear_error(noise: bytes, cut: int) -> None:
    whole = tokenizer("across words").to_bytes()
    for damaged in (noise, whole[:cut], whole[:cut] + noise, b"nT\x01" + noise, b"nT\x02" + noise):
        if damaged in (whole, load_tokenizer("bytes").to_bytes()):
            continue
        try:
            load_tokenizer(damaged)
        except DataError:
            continue
        pytest.fail(f"accepted {damaged!r}")
