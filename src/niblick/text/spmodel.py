"""A SentencePiece model: read, reduced to what decides its behaviour, and written.

Only the fields that change a token are declared here, so that reading drops the rest (training
paths, self tests) and equal tokenizers have equal bytes. The messages are described at run time:
the library's own module would demand the protobuf it was generated with.

`pack` and `unpack` turn a model into the few bytes an artifact carries: a vocabulary that niblick
trained is only its list of pieces (about 2 kB at 1,024) and, of a unigram model, their scores; any
other is the whole model compressed.
"""

from __future__ import annotations

import lzma
import struct
import zlib
from collections.abc import Iterator, Sequence
from functools import cache, cached_property
from itertools import accumulate, count, islice, pairwise
from math import isfinite
from typing import Any, NamedTuple

from niblick.errors import DataError
from niblick.files import expand

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
SPACE = "\u2581"
MAX_MODEL_BYTES = 16_000_000
BYTE_PIECES = tuple(f"<0x{value:02X}>" for value in range(256))
_LISTED, _COMPRESSED, _SCORED = b"nT\x01", b"nT\x02", b"nT\x03"
SCORE_STEPS = 16  # per nat: what the scores of a unigram model are rounded to
UNIGRAM, BPE = 1, 2  # as the trainer's `model_type`
_KINDS = {UNIGRAM: "unigram", BPE: "bpe", 3: "word", 4: "char"}
_SCORE = struct.Struct("<Bf")  # as a piece has it: the field's tag and its value
_NAMED_PIECES = {45: "unknown", 46: "bos", 47: "eos", 48: "pad"}
# Fields of sentencepiece_model.proto: name, number, type, default. Text is read as bytes, so that a
# piece that is not UTF-8 is told from a damaged file.
_MESSAGES = {
    "Piece": (("text", 1, "BYTES", ""), ("score", 2, "FLOAT", "0"), ("kind", 3, "INT32", "1")),
    "Trainer": (
        ("model_type", 3, "INT32", "1"),
        ("space_as_suffix", 24, "BOOL", "false"),
        ("byte_fallback", 35, "BOOL", "false"),
        ("unknown_surface", 44, "BYTES", ""),
        *((f"{name}_piece", number, "BYTES", "") for number, name in _NAMED_PIECES.items()),
    ),
    "Normalizer": (
        ("charsmap", 2, "BYTES", ""),
        ("dummy_prefix", 3, "BOOL", "true"),
        ("remove_spaces", 4, "BOOL", "true"),
        ("escape_spaces", 5, "BOOL", "true"),
    ),
    "Model": (
        ("pieces", 1, "Piece", ""),
        ("trainer", 2, "Trainer", ""),
        ("normalizer", 3, "Normalizer", ""),
        ("denormalizer", 5, "BYTES", ""),
    ),
}


@cache
def _messages() -> dict[str, Any]:
    """The message classes by name; protobuf is imported when a model is first read or made."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(
        name="niblick_sentencepiece.proto", package="niblick", syntax="proto2"
    )
    kinds = descriptor_pb2.FieldDescriptorProto
    for message, fields in _MESSAGES.items():
        made = file.message_type.add(name=message)
        for name, number, kind, default in fields:
            field = made.field.add(name=name, number=number, label=kinds.LABEL_OPTIONAL)
            if kind in _MESSAGES:
                field.type, field.type_name = kinds.TYPE_MESSAGE, f".niblick.{kind}"
            else:
                field.type, field.default_value = kinds.Type.Value(f"TYPE_{kind}"), default
            if name == "pieces":
                field.label = kinds.LABEL_REPEATED
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"niblick.{name}"))
        for name in _MESSAGES
    }


class Piece(NamedTuple):
    """One vocabulary entry: its text (spaces written U+2581), its merge score and its kind."""

    text: str
    score: float
    kind: int = NORMAL


class SentencePieceModel:
    """What decides how a SentencePiece model encodes, around its protocol-buffer `message`."""

    def __init__(self, message: Any) -> None:
        self.message = message

    @cached_property
    def pieces(self) -> tuple[Piece, ...]:
        """The vocabulary in order of ids."""
        return tuple(Piece(p.text.decode(), p.score, p.kind) for p in self.message.pieces)

    @property
    def kind_name(self) -> str:
        """`unigram`, `bpe`, `word` or `char`."""
        return _KINDS.get(self.message.trainer.model_type, "?")

    @property
    def space_as_suffix(self) -> bool:
        """Whether U+2581 ends words instead of beginning them."""
        return bool(self.message.trainer.space_as_suffix)

    @property
    def dummy_prefix(self) -> bool:
        """Whether encoding puts a space in front of the text, which decoding takes off again."""
        return bool(self.message.normalizer.dummy_prefix)

    @property
    def identity(self) -> bool:
        """Whether text reaches the encoder unchanged (but for spaces written U+2581)."""
        rules = self.message.normalizer
        changes = rules.charsmap or rules.remove_spaces or self.message.denormalizer
        return not changes and bool(rules.escape_spaces)

    @property
    def lossless(self) -> bool:
        """Whether decoding undoes encoding for every Unicode text."""
        texts = {piece.text for piece in self.pieces if piece.kind == NORMAL}
        spelled = {piece.text for piece in self.pieces if piece.kind == BYTE} >= set(BYTE_PIECES)
        fallback = bool(self.message.trainer.byte_fallback)
        return self.identity and fallback and spelled and SPACE in texts

    def with_dummy_prefix(self, on: bool) -> SentencePieceModel:
        """The same model with the space in front of the text switched on or off."""
        message = type(self.message)()
        message.CopyFrom(self.message)
        message.normalizer.dummy_prefix = on
        return SentencePieceModel(message)

    def serialize(self) -> bytes:
        """The model as SentencePiece reads it; equal models have equal bytes."""
        return bytes(self.message.SerializeToString(deterministic=True))


class ListedModel(SentencePieceModel):
    """What `lossless_bpe` and `lossless_unigram` give, to be read only: written without protobuf,
    whose import and messages would take most of the time that a packed tokenizer takes to open.
    """

    def __init__(
        self, pieces: tuple[Piece, ...], written: bytes, *, model_type: int, dummy_prefix: bool
    ) -> None:
        """`written` are the pieces as `serialize` begins."""
        self._listed, self._written = pieces, written
        self._type, self._prefix = model_type, dummy_prefix

    @classmethod
    def of(
        cls, texts: list[str], vocab_size: int, scores: Sequence[float] | None = None
    ) -> ListedModel:
        """The model of `lossless_bpe(texts, vocab_size)`, or with scores of `lossless_unigram`."""
        pieces = tuple(_listed(texts, vocab_size, scores))
        kind = BPE if scores is None else UNIGRAM
        written = b"".join(map(_written, pieces))
        return cls(pieces, written, model_type=kind, dummy_prefix=True)

    @cached_property
    def message(self) -> Any:
        """The protocol-buffer message."""
        return _messages()["Model"].FromString(self.serialize())

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """The vocabulary in order of ids."""
        return self._listed

    @property
    def kind_name(self) -> str:
        """`bpe` or `unigram`."""
        return _KINDS[self._type]

    @property
    def space_as_suffix(self) -> bool:
        """False."""
        return False

    @property
    def dummy_prefix(self) -> bool:
        """Whether encoding puts a space in front of the text."""
        return self._prefix

    @property
    def lossless(self) -> bool:
        """Whether a piece is the space alone: bytes spell what no piece does."""
        return any(piece.text == SPACE for piece in self._listed)

    def with_dummy_prefix(self, on: bool) -> SentencePieceModel:
        """The same model with the space in front of the text switched on or off."""
        return ListedModel(self._listed, self._written, model_type=self._type, dummy_prefix=on)

    def serialize(self) -> bytes:
        """Pieces; then a trainer of this kind with byte fallback and a normalizer that changes
        spaces alone, field by field as in `_MESSAGES`.
        """
        trainer = bytes([3 << 3, self._type]) + _varint(35 << 3) + bytes([1])
        switches = bytes([3 << 3, self._prefix, 4 << 3, 0, 5 << 3, 1])
        return b"".join(
            [self._written, _begin(2, len(trainer)), trainer, _begin(3, len(switches)), switches]
        )


def _listed(
    texts: list[str], vocab_size: int, scores: Sequence[float] | None = None
) -> Iterator[Piece]:
    """The pieces of `lossless_bpe` or, with scores, `lossless_unigram`, in order of ids."""
    yield Piece("<unk>", 0.0, UNKNOWN)
    yield Piece("<s>", 0.0, CONTROL)
    for text in BYTE_PIECES:
        yield Piece(text, 0.0, BYTE)
    found = [-float(rank) for rank in range(len(texts))] if scores is None else scores
    for text, score in zip(texts, found, strict=True):
        yield Piece(text, score)
    taken = set(texts)
    unused = (name for n in count() if (name := f"<unused{n}>") not in taken)
    for name in islice(unused, vocab_size - 2 - len(BYTE_PIECES) - len(texts)):
        yield Piece(name, 0.0, UNUSED)


def _written(piece: Piece) -> bytes:
    """A piece as the protocol buffer of a model has it."""
    text = piece.text.encode()
    before, after = _around(len(text), piece.kind)
    return before + text + _SCORE.pack(2 << 3 | 5, piece.score) + after


@cache
def _around(size: int, kind: int) -> tuple[bytes, bytes]:
    """What stands before a piece's text of `size` bytes, and what after its score."""
    after = b"" if kind == NORMAL else bytes([3 << 3, kind])
    before = _begin(1, size)
    return _begin(1, len(before) + size + _SCORE.size + len(after)) + before, after


def _begin(number: int, size: int) -> bytes:
    """How a field of `size` bytes begins, fewer than 2^14."""
    return bytes([number << 3 | 2]) + _varint(size)


def _varint(value: int) -> bytes:
    """A number below 2^14."""
    return bytes([value]) if value < 128 else bytes([value & 127 | 128, value >> 7])


def parse(data: bytes) -> SentencePieceModel:
    """Read a `.model` file's bytes into canonical form; raises `DataError` where it is not one."""
    from google.protobuf.message import DecodeError

    message = _messages()["Model"]()
    try:
        message.ParseFromString(data)
    except DecodeError:
        raise DataError("the tokenizer is truncated, or it is not a SentencePiece model") from None
    if not 2 <= len(message.pieces) <= 65536:
        raise DataError(
            f"the tokenizer has {len(message.pieces)} pieces; a SentencePiece model here has 2 to"
            " 65,536"
        )
    message.DiscardUnknownFields()
    for piece in message.pieces:
        piece.text, piece.score = piece.text, piece.score  # written also where they are defaults
        if piece.kind == NORMAL:
            piece.ClearField("kind")
    message.trainer.SetInParent()
    message.normalizer.SetInParent()
    if not _replaces(message.denormalizer):
        message.ClearField("denormalizer")
    model = SentencePieceModel(message)
    try:
        pieces = model.pieces
    except UnicodeDecodeError:
        raise DataError(
            "the tokenizer has a piece that is not UTF-8; it is not a SentencePiece model"
        ) from None
    for piece in pieces:
        if piece.kind == BYTE and piece.text not in BYTE_PIECES:
            raise DataError(
                f"the tokenizer has byte piece {piece.text!r}; byte pieces are written <0x00> to"
                " <0xFF>"
            )
    return model


def _replaces(denormalizer: bytes) -> bool:
    """Whether a denormalizer has a map of characters."""
    from google.protobuf.message import DecodeError

    try:
        return bool(_messages()["Normalizer"].FromString(denormalizer).HasField("charsmap"))
    except DecodeError:
        raise DataError("the tokenizer's denormalizer is damaged") from None


def lossless_bpe(texts: list[str], vocab_size: int) -> SentencePieceModel:
    """The lossless model whose learned pieces are `texts`, best first, padded with unused pieces.

    Ids: 0 unknown, 1 `<s>`, 2 to 257 the bytes, then `texts`, then `<unused0>` and so on up to
    `vocab_size`.
    """
    return _lossless(_listed(texts, vocab_size), BPE)


def lossless_unigram(pieces: list[tuple[str, float]], vocab_size: int) -> SentencePieceModel:
    """The lossless unigram model whose learned pieces are `pieces` and their scores, in nats, ids
    as in `lossless_bpe`.
    """
    texts, scores = zip(*pieces, strict=True)
    return _lossless(_listed(list(texts), vocab_size, scores), UNIGRAM)


def _lossless(pieces: Iterator[Piece], model_type: int) -> SentencePieceModel:
    message = _messages()["Model"]()
    for piece in pieces:
        kind = {} if piece.kind == NORMAL else {"kind": piece.kind}
        message.pieces.add(text=piece.text.encode(), score=piece.score, **kind)
    message.trainer.model_type, message.trainer.byte_fallback = model_type, True
    switches = message.normalizer
    switches.dummy_prefix, switches.remove_spaces, switches.escape_spaces = True, False, True
    return SentencePieceModel(message)


def pack(model: SentencePieceModel) -> bytes:
    """The fewest bytes that `unpack` turns into the same model."""
    learned = [piece for piece in model.pieces if piece.kind == NORMAL]
    texts, whole = [piece.text.encode() for piece in learned], model.serialize()
    if learned and max(map(len, texts)) < 256:
        counts = struct.pack("<HH", len(model.pieces) - 1, len(texts))
        body = counts + bytes(map(len, texts)) + b"".join(texts)
        kind, falls, scores = _LISTED, list[int](), None
        if model.kind_name == "unigram" and all(isfinite(piece.score) for piece in learned):
            levels = [round(-piece.score * SCORE_STEPS) for piece in learned]
            falls = [after - before for before, after in pairwise([0, *levels])]
            kind, scores = _SCORED, [-level / SCORE_STEPS for level in levels]
        rebuilt = ListedModel.of([piece.text for piece in learned], len(model.pieces), scores)
        if all(0 <= fall < 256 for fall in falls) and rebuilt.serialize() == whole:
            return kind + zlib.compress(body + bytes(falls), 9)
    return _COMPRESSED + lzma.compress(whole, preset=9 | lzma.PRESET_EXTREME)


def unpack(data: bytes) -> SentencePieceModel:
    """Undo `pack`, or read the bytes of a `.model` file; `DataError` for anything else."""
    if len(data) > MAX_MODEL_BYTES:
        raise DataError(
            f"a tokenizer of {len(data):,} bytes; at most {MAX_MODEL_BYTES:,} are accepted"
        )
    kind = data[: len(_LISTED)]
    if kind not in (_LISTED, _SCORED, _COMPRESSED):
        return parse(data)
    listed = kind != _COMPRESSED
    decoder = zlib.decompressobj() if listed else lzma.LZMADecompressor(memlimit=256_000_000)
    packed = data[len(_LISTED) :]
    raw = expand(packed, decoder, MAX_MODEL_BYTES, "the packed tokenizer", DataError)
    return _unpack_list(raw, scored=kind == _SCORED) if listed else parse(raw)


def _unpack_list(raw: bytes, *, scored: bool) -> SentencePieceModel:
    if len(raw) < 4:
        raise DataError("the packed tokenizer is truncated")
    last, learned = struct.unpack_from("<HH", raw)
    lengths, at = raw[4 : 4 + learned], 4 + learned
    end = at + sum(lengths)
    if len(raw) != end + learned * scored or last + 1 < 258 + learned:
        raise DataError("the packed tokenizer's piece lengths do not add up")
    texts: list[str] = []
    for length in lengths:
        try:
            texts.append(raw[at : at + length].decode())
        except UnicodeDecodeError:
            raise DataError(f"the packed tokenizer's piece {len(texts)} is not UTF-8") from None
        at += length
    if len(set(texts)) != len(texts):
        raise DataError("the packed tokenizer holds a piece twice")
    levels = accumulate(raw[end:]) if scored else None
    scores = None if levels is None else [-level / SCORE_STEPS for level in levels]
    return ListedModel.of(texts, last + 1, scores)
