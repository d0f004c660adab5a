"""Training a lossless tokenizer with byte fallback, BPE or unigram, by SentencePiece's trainer.

Normalisation is the identity. In BPE, choices that raise the bytes per token of a small vocabulary
and cost no exactness: merges may cross words (`of the` can be one token) and mix scripts and
digits, and a single ASCII character is spelled by its byte piece, so that no entry is spent on a
second name for it. In a unigram model pieces keep within words, and a single character has one of
its own, whose score says how likely it is. The vocabulary is exactly `vocab_size` in every case.
"""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Iterable
from itertools import accumulate, islice
from typing import Any

import sentencepiece

from niblick.errors import DataError
from niblick.text import spmodel
from niblick.text.bytetable import refuse_surrogates
from niblick.text.case import MARKS, CaseTokenizer, segments
from niblick.text.spmodel import SPACE, SentencePieceModel
from niblick.text.tokenizer import SentencePieceTokenizer, Tokenizer

SMALLEST_VOCABULARY = 259  # unknown, BOS, 256 bytes, and U+2581
LARGEST_VOCABULARY = 65536
_ASCII_ROOM = 128  # pieces learned in excess, to replace the ASCII characters that are dropped
TRAINED: dict[str, dict[str, bool]] = {  # what is trained by which name, as `train_tokenizer` asks
    "train": {},
    "train-within-words": {"across_words": False},
    "train-case": {"case": True},
    "train-unigram": {"unigram": True},
    "train-unigram-case": {"case": True, "unigram": True},
}
SAMPLE = 16_000_000  # characters that are read in all
_UNIGRAM_SAMPLE = 5_000_000  # the same for a unigram model, which takes ten times as long
_UNIGRAM = {  # options of the trainer
    "model_type": "unigram",
    "split_by_whitespace": True,
    "split_by_unicode_script": False,
    "split_by_number": False,
    "seed_sentencepiece_size": 1_000_000,  # fewer pieces to begin with cost bits per byte later on
    "shrinking_factor": 0.9,  # so does taking more of them away at once
}
_RESERVED = re.compile("[\0\u2585]")  # the trainer's own marks
_PIECE = 1 << 16  # characters of one sentence at most
_SPACE_SCORE = -1.0  # where no text has a space of its own
_SPARE = 512  # pieces that a unigram model has beside characters, before it is cut down
_RARE = 0.001  # of the text: its rarest characters are left to byte pieces


def train_tokenizer(
    texts: Iterable[str],
    *,
    vocab_size: int,
    across_words: bool = True,
    case: bool = False,
    unigram: bool = False,
) -> Tokenizer:
    """Learn a tokenizer of exactly `vocab_size` ids from `texts`, always the same one.

    At most 16 million characters are read (5 million for a unigram model), evenly over the text.
    With `across_words` false no piece holds more than one word; with `case` capitals are marks
    (`niblick.text.case`); with `unigram` it is a unigram language model in place of BPE (Kudo
    2018), whose pieces never hold more than one. Raises `DataError` for a vocabulary out of range
    or no text at all.
    """
    marks = MARKS if case else ()
    smallest = SMALLEST_VOCABULARY + len(marks)
    if not smallest <= vocab_size <= LARGEST_VOCABULARY:
        raise DataError(
            f"vocabulary of {vocab_size}: a trained tokenizer has {smallest} to"
            f" {LARGEST_VOCABULARY} ids"
        )
    sample = _sample(list(texts), _UNIGRAM_SAMPLE if unigram else SAMPLE)
    for text in sample:
        refuse_surrogates(text)
    if not sample:
        raise DataError("there is no text to train a tokenizer on")
    room = vocab_size - smallest + 1
    if unigram:
        model = _unigram(sample, room, vocab_size, marks)
    else:
        model = _bpe(sample, room, vocab_size, marks, across_words=across_words)
    plain = SentencePieceTokenizer(model)
    return CaseTokenizer(plain) if case else plain


def trained_as(tokenizer: Tokenizer) -> str:
    """The name in `TRAINED` under which a tokenizer like this one is trained."""
    plain = tokenizer.plain if isinstance(tokenizer, CaseTokenizer) else tokenizer
    unigram = isinstance(plain, SentencePieceTokenizer) and plain.model.kind_name == "unigram"
    return f"train{'-unigram' * unigram}{'-case' * (plain is not tokenizer)}"


def _bpe(
    sample: list[str], room: int, vocab_size: int, marks: tuple[str, ...], *, across_words: bool
) -> SentencePieceModel:
    """Merges by rank, then characters by frequency, in `room` ids after the marks."""
    apart = ("split_by_whitespace", "split_by_unicode_script", "split_by_number")
    options = {"model_type": "bpe", **dict.fromkeys(apart, not across_words)}
    pieces = _learn(sample, vocab_size + _ASCII_ROOM, bool(marks), options)
    learned = [piece.text for piece in pieces]
    singles = [text for text in learned if len(text) == 1 and not text.isascii() and text != SPACE]
    singles = [SPACE, *singles][:room]
    merges = [text for text in learned if len(text) > 1]
    return spmodel.lossless_bpe([*marks, *merges[: room - len(singles)], *singles], vocab_size)


def _unigram(
    sample: list[str], room: int, vocab_size: int, marks: tuple[str, ...]
) -> SentencePieceModel:
    """The likeliest pieces, the space among them, in `room` ids after the marks, which no other
    piece covers.
    """
    wanted = max(room, 2 * _common_letters(sample) + _SPARE)
    pieces = _learn(sample, wanted + SMALLEST_VOCABULARY, bool(marks), _UNIGRAM)
    scores = {SPACE: _SPACE_SCORE} | {piece.text: piece.score for piece in pieces}
    best = sorted(scores, key=lambda text: (text != SPACE, -scores[text]))[:room]
    steps = spmodel.SCORE_STEPS
    rounded = [(text, round(scores[text] * steps) / steps) for text in best]
    found = sorted(rounded, key=lambda piece: (-piece[1], piece[0]))
    return spmodel.lossless_unigram([*((mark, 0.0) for mark in marks), *found], vocab_size)


def _common_letters(texts: list[str]) -> int:
    """How many characters the trainer keeps as pieces."""
    counts = Counter[str]()
    for text in texts:
        counts.update(text)
    kept = (1 - _RARE) * counts.total()
    return sum(seen < kept for seen in accumulate(n for _, n in counts.most_common())) + 1


def _sample(texts: list[str], most: int) -> list[str]:
    """Every n-th piece, n such that the sample is not exceeded, without the trainer's own marks.

    A text is one piece unless it is very long: the trainer's time grows faster than a sentence.
    """
    step = max(1, -(-sum(map(len, texts)) // most))
    pieces = (text[i : i + _PIECE] for text in texts for i in range(0, len(text), _PIECE))
    parts = (part for piece in islice(pieces, 0, None, step) for part in _RESERVED.split(piece))
    return [part for part in parts if part.strip("\r\n")]


def _learn(
    texts: list[str], count: int, case: bool, options: dict[str, Any]
) -> list[spmodel.Piece]:
    """The trainer's learned pieces, some `count` less 258 of them."""
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.Train(
            sentence_iterator=segments(texts) if case else iter(texts),
            model_writer=model,
            vocab_size=count,
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=not case,  # segments have it where it belongs
            character_coverage=1 - _RARE,
            max_sentence_length=2**30,
            hard_vocab_limit=False,
            unk_id=0,
            bos_id=1,
            eos_id=-1,
            pad_id=-1,
            num_threads=1,
            minloglevel=2,
            **options,
        )
    except RuntimeError as error:
        raise DataError(
            f"sentencepiece could not train on this text: {str(error).splitlines()[0]}"
        ) from None
    pieces = spmodel.parse(model.getvalue()).pieces
    return [piece for piece in pieces if piece.kind == spmodel.NORMAL]
