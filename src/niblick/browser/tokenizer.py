"""A tokenizer as the page's JavaScript takes it (page/tokenizer.js)."""

from __future__ import annotations

from typing import Any

from niblick.errors import NiblickError
from niblick.text import spmodel
from niblick.text.case import CaseTokenizer
from niblick.text.tokenizer import BytesTokenizer, SentencePieceTokenizer, Tokenizer

_KINDS = ("bpe", "unigram")


def describe_tokenizer(tokenizer: Tokenizer) -> tuple[dict[str, Any], bytes]:
    """What the page needs to know of a tokenizer, and the map of characters it normalises by.

    `NiblickError` for kinds that the page cannot compute.
    """
    if isinstance(tokenizer, BytesTokenizer):
        return {"kind": "bytes", "bos": tokenizer.bos_id, "first": tokenizer.vocab_size - 256}, b""
    if isinstance(tokenizer, CaseTokenizer):
        told, characters = describe_tokenizer(tokenizer.plain)
        return told | {"title": tokenizer.title, "caps": tokenizer.caps}, characters
    model = tokenizer.model if isinstance(tokenizer, SentencePieceTokenizer) else None
    if model is None or model.kind_name not in _KINDS:
        raise NiblickError(
            f"a page cannot use the tokenizer {tokenizer.name!r}; accepted are bytes and"
            f" SentencePiece models of kind {' or '.join(_KINDS)}"
        )
    pieces, rules = model.pieces, model.message.normalizer
    learned = [piece.score for piece in pieces if piece.kind == spmodel.NORMAL]
    ranked = learned == [-float(rank) for rank in range(len(learned))]
    told = {
        "kind": model.kind_name,
        "bos": tokenizer.bos_id,
        "lossless": tokenizer.lossless,
        "dummyPrefix": model.dummy_prefix,
        "removeSpaces": bool(rules.remove_spaces),
        "escapeSpaces": bool(rules.escape_spaces),
        "byteFallback": bool(model.message.trainer.byte_fallback),
        "pieces": [piece.text for piece in pieces],
        "kinds": [piece.kind for piece in pieces],
        "scores": None if ranked else [piece.score for piece in pieces],
    }
    return told, bytes(rules.charsmap)
