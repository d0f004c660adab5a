"""Training a lossless BPE tokenizer with byte fallback, by SentencePiece's trainer.

Normalisation is the identity. Three choices raise the bytes per token of a small vocabulary, and
none costs exactness: merges may cross words (`of the` can be one token), merges may mix scripts and
digits, and a single ASCII character is spelled by its byte piece, so that no entry is spent on a
second name for it. The vocabulary is exactly `vocab_size` in every case.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable
from itertools import islice

import sentencepiece

from niblick.errors import DataError
from niblick.text import spmodel
from niblick.text.case import MARKS, CaseTokenizer, segments
from niblick.text.spmodel import SPACE
from niblick.text.tokenizer import SentencePieceTokenizer, Tokenizer, refuse_surrogates

SMALLEST_VOCABULARY = 259  # unknown, BOS, 256 bytes, and U+2581
LARGEST_VOCABULARY = 65536
_ASCII_ROOM = 128  # pieces learned in excess, to replace the ASCII characters that are dropped
TRAINED: dict[str, dict[str, bool]] = {  # what is trained by which name, as `train_tokenizer` asks
    "train": {},
    "train-within-words": {"across_words": False},
    "train-case": {"case": True},
}
SAMPLE = 16_000_000  # characters that are read in all
_RESERVED = re.compile("[\0\u2585]")  # the trainer's own marks
_PIECE = 1 << 16  # characters of one sentence at most
_RARE = 0.001  # of the text: its rarest characters are left to byte pieces


def train_tokenizer(
    texts: Iterable[str], *, vocab_size: int, across_words: bool = True, case: bool = False
) -> Tokenizer:
    """Learn a tokenizer of exactly `vocab_size` ids from `texts`, always the same one.

    At most 16 million characters are read, evenly over the text. With `across_words` false no piece
    holds more than one word; with `case` capitals are marks (`niblick.text.case`). Raises
    `DataError` for a vocabulary out of range or no text at all.
    """
    marks = MARKS if case else ()
    smallest = SMALLEST_VOCABULARY + len(marks)
    if not smallest <= vocab_size <= LARGEST_VOCABULARY:
        raise DataError(
            f"vocabulary of {vocab_size}: a trained tokenizer has {smallest} to"
            f" {LARGEST_VOCABULARY} ids"
        )
    sample = _sample(list(texts))
    for text in sample:
        refuse_surrogates(text)
    if not sample:
        raise DataError("there is no text to train a tokenizer on")
    learned = _learn(sample, vocab_size, across_words, case)
    room = vocab_size - smallest + 1
    singles = [text for text in learned if len(text) == 1 and not text.isascii() and text != SPACE]
    singles = [SPACE, *singles][:room]
    merges = [text for text in learned if len(text) > 1]
    pieces = [*marks, *merges[: room - len(singles)], *singles]
    plain = SentencePieceTokenizer(spmodel.lossless_bpe(pieces, vocab_size))
    return CaseTokenizer(plain) if case else plain


def _sample(texts: list[str]) -> list[str]:
    """Every n-th piece, n such that the sample is not exceeded, without the trainer's own marks.

    A text is one piece unless it is very long: the trainer's time grows faster than a sentence.
    """
    step = max(1, -(-sum(map(len, texts)) // SAMPLE))
    pieces = (text[i : i + _PIECE] for text in texts for i in range(0, len(text), _PIECE))
    parts = (part for piece in islice(pieces, 0, None, step) for part in _RESERVED.split(piece))
    return [part for part in parts if part.strip("\r\n")]


def _learn(texts: list[str], vocab_size: int, across_words: bool, case: bool) -> list[str]:
    """The trainer's learned pieces: merges by rank, then characters by frequency."""
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.Train(
            sentence_iterator=segments(texts) if case else iter(texts),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size + _ASCII_ROOM,
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=not case,  # segments have it where it belongs
            character_coverage=1 - _RARE,
            split_by_whitespace=not across_words,
            split_by_unicode_script=not across_words,
            split_by_number=not across_words,
            max_sentence_length=2**30,
            hard_vocab_limit=False,
            unk_id=0,
            bos_id=1,
            eos_id=-1,
            pad_id=-1,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise DataError(
            f"sentencepiece could not train on this text: {str(error).splitlines()[0]}"
        ) from None
    pieces = spmodel.parse(model.getvalue()).pieces
    return [piece.text for piece in pieces if piece.kind == spmodel.NORMAL]
