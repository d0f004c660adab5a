"""A tokenizer as Hugging Face's `tokenizers` library runs it: the same ids for every text.

Pieces are written with plain spaces, so that a literal U+2581 has no piece and is spelled in bytes,
as niblick spells it. An ASCII character that only a byte piece stands for is written as itself: it
can then take part in merges. A unigram model there would find the names of control and byte pieces
in a text, so texts are cut within such names, where no piece of the vocabulary goes across.
"""

from __future__ import annotations

import re
from typing import Any

from niblick.errors import NiblickError
from niblick.exchange.hf.fast_case import NAMES, lower_case, raise_case
from niblick.extras import needs
from niblick.text import spmodel
from niblick.text.case import CaseTokenizer
from niblick.text.spmodel import SPACE, Piece, SentencePieceModel
from niblick.text.tokenizer import BytesTokenizer, SentencePieceTokenizer, Tokenizer

SPECIAL = {"<pad>", "<s>", "</s>", "<unk>"}
_SURFACE = (spmodel.NORMAL, spmodel.BYTE)


def fast_tokenizer(tokenizer: Tokenizer) -> Any:
    """A `tokenizers.Tokenizer` whose `encode(text)` is `encode_document(text)`.

    Raises `NiblickError` for a tokenizer of another kind, or one that it cannot follow exactly.
    """
    with needs("export to hf", "hf"):
        from tokenizers import AddedToken, processors
    if isinstance(tokenizer, BytesTokenizer):
        fast, bos = _bytes(), "<s>"
    elif isinstance(tokenizer, SentencePieceTokenizer):
        fast, bos = _sentencepiece(tokenizer.model), "<s>"
    elif isinstance(tokenizer, CaseTokenizer):
        fast, bos = _sentencepiece(tokenizer.plain.model, cased=True), "<s>"
    else:
        raise NiblickError(f"the tokenizer {tokenizer.name!r} has no form as a fast tokenizer")
    special = [name for name in SPECIAL if fast.token_to_id(name) is not None]
    fast.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in special])
    fast.encode_special_tokens = True  # in a text they are letters
    fast.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.bos_id)]
    )
    return fast


def _bytes() -> Any:
    from tokenizers import Tokenizer as Fast
    from tokenizers import decoders, models, pre_tokenizers

    names = ["<pad>", "<s>", "</s>", "<unk>", *_byte_letters()]
    fast = Fast(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[]))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    fast.decoder = decoders.ByteLevel()
    return fast


def _byte_letters() -> list[str]:
    """The letter that stands for each byte: itself where it is printable, else one beyond."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [value for value in range(256) if value not in shown]
    others = {value: chr(256 + i) for i, value in enumerate(hidden)}
    return [others.get(value, chr(value)) for value in range(256)]


def _sentencepiece(model: SentencePieceModel, *, cased: bool = False) -> Any:
    from tokenizers import Tokenizer as Fast
    from tokenizers import decoders, models

    names = _names(model, NAMES if cased else {})
    unknown = next(p.text for p in model.pieces if p.kind == spmodel.UNKNOWN)
    fallback = bool(model.message.trainer.byte_fallback)
    if model.kind_name == "bpe":
        fast = Fast(
            models.BPE(
                vocab={name: i for i, name in enumerate(names)},
                merges=_merges(model.pieces, names),
                unk_token=unknown,
                byte_fallback=fallback,
                fuse_unk=True,
            )
        )
    elif model.kind_name == "unigram":
        scored = [(name, p.score) for name, p in zip(names, model.pieces, strict=True)]
        place = names.index(unknown)
        fast = Fast(models.Unigram(scored, unk_id=place, byte_fallback=fallback))
        fast.pre_tokenizer = _cuts(model, fallback)
    else:
        raise NiblickError(f"a {model.kind_name} tokenizer has no form as a fast tokenizer")
    steps = _normalizer(model)
    if steps is not None:
        fast.normalizer = lower_case(steps) if cased else steps
    found: list[Any] = [decoders.ByteFallback(), decoders.Fuse()]
    found += [decoders.Strip(" ", 1, 0)] if model.dummy_prefix else []
    fast.decoder = decoders.Sequence(raise_case(found) if cased else found)
    return fast


def _names(model: SentencePieceModel, marks: dict[str, str]) -> list[str]:
    """What each piece is called there; `NiblickError` for pieces that cannot be followed. `marks`
    have names of their own, letters that no other piece holds.
    """
    pieces = model.pieces
    if any(p.kind == spmodel.USER_DEFINED for p in pieces):
        raise NiblickError("a tokenizer with user-defined pieces has no exact fast tokenizer")
    texts = {p.text for p in pieces if p.kind == spmodel.NORMAL}
    merged = model.kind_name == "bpe"

    def name(piece: Piece) -> str:
        if piece.kind == spmodel.BYTE and merged:
            letter = chr(int(piece.text[1:-1], 16))
            free = letter.isascii() and letter not in texts and letter != " "
            return letter if free and letter not in marks.values() else piece.text
        text = marks.get(piece.text, piece.text)
        return text.replace(SPACE, " ") if piece.kind == spmodel.NORMAL else piece.text

    names = [name(piece) for piece in pieces]
    if len(set(names)) != len(names):
        raise NiblickError("two of the tokenizer's pieces have the same text; no fast tokenizer")
    return names


def _cuts(model: SentencePieceModel, fallback: bool) -> Any:
    """A cut inside each name of a piece that no text stands for."""
    from tokenizers import Regex, pre_tokenizers

    normal = [p.text for p in model.pieces if p.kind == spmodel.NORMAL]
    known, patterns = set("".join(normal)), []
    pairs = {text[i : i + 2] for text in normal for i in range(len(text) - 1)}
    for name in {p.text for p in model.pieces if p.kind != spmodel.NORMAL and len(p.text) > 1}:
        # Without bytes, unknown characters beside each other are one token, which is not to be cut.
        places = range(1, len(name)) if fallback else _beside_known(name, known)
        at = next((i for i in places if name[i - 1 : i + 1] not in pairs), None)
        if at is None:
            raise NiblickError(
                f"the tokenizer's pieces cover {name!r}, which is no text; no fast tokenizer"
            )
        patterns.append(f"{re.escape(name[:at])}(?={re.escape(name[at:])})")
    return pre_tokenizers.Split(Regex("|".join(sorted(patterns))), "merged_with_previous")


def _beside_known(name: str, known: set[str]) -> list[int]:
    return [i for i in range(1, len(name)) if name[i - 1] in known or name[i] in known]


def _merges(pieces: tuple[Piece, ...], names: list[str]) -> list[tuple[str, str]]:
    """Every way to join two pieces into one, the best piece first, its longest left part first."""
    known = {n for n, p in zip(names, pieces, strict=True) if p.kind in _SURFACE}
    whole = [(n, p.score) for n, p in zip(names, pieces, strict=True) if p.kind == spmodel.NORMAL]
    for name, _ in whole:
        lost = next((letter for letter in name if letter not in known), None)
        if lost is not None:
            raise NiblickError(
                f"the tokenizer joins {name!r} of {lost!r}, which is no piece; no fast tokenizer"
            )
    found = []
    for name, _ in sorted(whole, key=lambda each: -each[1]):
        cuts = range(len(name) - 1, 0, -1)
        parts = ((name[:cut], name[cut:]) for cut in cuts)
        found += [(left, right) for left, right in parts if left in known and right in known]
    return found


def _normalizer(model: SentencePieceModel) -> Any:
    """What happens to a text before it is cut; None for nothing."""
    from tokenizers import Regex, normalizers

    rules = model.message.normalizer
    steps: list[Any] = []
    if rules.charsmap:
        steps.append(normalizers.Precompiled(bytes(rules.charsmap)))
    if rules.remove_spaces:
        ends = normalizers.Replace(Regex("^ +| +$"), "")  # of the whole text, spaces alone
        steps += [ends, normalizers.Replace(Regex(" {2,}"), " ")]
    if model.dummy_prefix:
        steps.append(normalizers.Prepend(" "))
    if not model.lossless:
        steps.append(normalizers.Replace(SPACE, " "))
    return normalizers.Sequence(steps) if steps else None
