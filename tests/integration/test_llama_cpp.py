"""llama.cpp runs the GGUF file of a model that maps onto it: the same ids and logits."""

from __future__ import annotations

import numpy as np
import pytest

from leaving import LLAMA, saved
from niblick.data.corpus import corpora
from niblick.exchange.formats import export_model
from niblick.text.learning import train_tokenizer

pytestmark = pytest.mark.integration
pytest.importorskip("gguf")


def exported(tmp_path, kind):
    texts = list(corpora["wiki-vital"]().splits["validation"])[:20]
    tokenizer = train_tokenizer(texts, vocab_size=400) if kind == "bpe" else None
    model = saved(tmp_path, "token-shift", *LLAMA, tokenizer=tokenizer)
    export_model(model.path, "gguf", tmp_path / "model.gguf")
    return model, texts


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_the_file_reads_back_with_every_tensor(kind, tmp_path):
    import gguf

    model, _ = exported(tmp_path, kind)
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    assert len(reader.tensors) == 4 + 8 * len(model.plan.layers)
    assert reader.fields["general.architecture"].contents() == "arcee"
    assert len(reader.fields["tokenizer.ggml.tokens"].contents()) == model.tokenizer.vocab_size


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_llama_cpp_gives_our_ids_and_logits(kind, tmp_path):
    llama_cpp = pytest.importorskip("llama_cpp")
    model, texts = exported(tmp_path, kind)
    other = llama_cpp.Llama(str(tmp_path / "model.gguf"), n_ctx=256, logits_all=True, verbose=False)
    for text in [*texts[:5], "naïve 日本 🙂  two  spaces\n\n"]:
        own = model.tokenizer.encode_document(text).tolist()
        assert other.tokenize(text.encode(), add_bos=True, special=False) == own
    ids = model.tokenizer.encode_document(texts[0]).tolist()[:20]
    other.eval(ids)
    found = np.array(other.scores[: len(ids)])
    right = model.logits(ids)
    assert np.abs(found - right).max() < 2e-3  # its cache holds 16-bit floats
    assert (found.argmax(1) == right.argmax(1)).mean() > 0.9
