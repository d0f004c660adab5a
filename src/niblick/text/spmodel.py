"""A SentencePiece model as plain data: parsed, reduced to what decides its behaviour, and
serialised.

`canonical` drops what does not change a single token (training paths, self tests), so that equal
tokenizers have equal bytes. `pack` and `unpack` turn the canonical form into the few bytes an
artifact carries: a vocabulary that niblick trained is only its list of pieces (about 2 kB at
1,024), any other is the canonical form compressed.
"""

from __future__ import annotations

import lzma
import struct
import zlib
from dataclasses import dataclass, field, replace

from niblick.errors import DataError
from niblick.text import protowire as wire

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
SPACE = "\u2581"
MAX_MODEL_BYTES = 16_000_000
_PIECES, _TRAINER, _NORMALIZER, _DENORMALIZER = 1, 2, 3, 5
_MODEL_TYPE, _SUFFIX, _BYTE_FALLBACK = 3, 24, 35
_KEPT_TRAINER_FIELDS = {_MODEL_TYPE, _SUFFIX, _BYTE_FALLBACK, 44, 45, 46, 47, 48}
_CHARSMAP, _DUMMY_PREFIX, _REMOVE_SPACES, _ESCAPE_SPACES = 2, 3, 4, 5
BYTE_PIECES = tuple(f"<0x{value:02X}>" for value in range(256))
_LISTED, _COMPRESSED = b"nT\x01", b"nT\x02"


@dataclass(frozen=True)
class Piece:
    """One vocabulary entry: its text (spaces written U+2581), its merge score and its kind."""

    text: str
    score: float
    kind: int = NORMAL


@dataclass(frozen=True)
class SentencePieceModel:
    """What decides how a SentencePiece model encodes: pieces, training settings that matter,
    normalizer.
    """

    pieces: tuple[Piece, ...]
    trainer: tuple[wire.Field, ...] = ()
    normalizer: tuple[wire.Field, ...] = ()
    denormalizer: bytes = field(default=b"", repr=False)

    def _number(self, fields: tuple[wire.Field, ...], number: int, default: int) -> int:
        values = [value for key, _, value in fields if key == number]
        return int(values[-1]) if values and isinstance(values[-1], int) else default

    @property
    def kind_name(self) -> str:
        """`unigram`, `bpe`, `word` or `char`."""
        return {1: "unigram", 2: "bpe", 3: "word", 4: "char"}.get(
            self._number(self.trainer, _MODEL_TYPE, 1), "?"
        )

    @property
    def byte_fallback(self) -> bool:
        """Whether characters outside the vocabulary become byte pieces rather than the unknown
        piece.
        """
        return bool(self._number(self.trainer, _BYTE_FALLBACK, 0))

    @property
    def space_as_suffix(self) -> bool:
        """Whether U+2581 ends words instead of beginning them."""
        return bool(self._number(self.trainer, _SUFFIX, 0))

    @property
    def dummy_prefix(self) -> bool:
        """Whether encoding puts a space in front of the text, which decoding takes off again."""
        return bool(self._number(self.normalizer, _DUMMY_PREFIX, 1))

    @property
    def identity(self) -> bool:
        """Whether text reaches the encoder unchanged (but for spaces written U+2581)."""
        charsmap = any(number == _CHARSMAP and value for number, _, value in self.normalizer)
        removes = self._number(self.normalizer, _REMOVE_SPACES, 1)
        escapes = self._number(self.normalizer, _ESCAPE_SPACES, 1)
        return not charsmap and not removes and bool(escapes) and not self.denormalizer

    @property
    def lossless(self) -> bool:
        """Whether decoding undoes encoding for every Unicode text."""
        texts = {piece.text for piece in self.pieces if piece.kind == NORMAL}
        bytes_present = {piece.text for piece in self.pieces if piece.kind == BYTE} >= set(
            BYTE_PIECES
        )
        return self.identity and self.byte_fallback and bytes_present and SPACE in texts

    def with_dummy_prefix(self, on: bool) -> SentencePieceModel:
        """The same model with the space in front of the text switched on or off."""
        kept = tuple(entry for entry in self.normalizer if entry[0] != _DUMMY_PREFIX)
        return replace(
            self, normalizer=tuple(sorted((*kept, (_DUMMY_PREFIX, wire.VARINT, int(on)))))
        )

    def serialize(self) -> bytes:
        """The model as SentencePiece reads it."""
        out = [wire.write_field(_PIECES, wire.BYTES, _write_piece(piece)) for piece in self.pieces]
        for number, fields in ((_TRAINER, self.trainer), (_NORMALIZER, self.normalizer)):
            out.append(
                wire.write_field(number, wire.BYTES, b"".join(wire.write_field(*f) for f in fields))
            )
        if self.denormalizer:
            out.append(wire.write_field(_DENORMALIZER, wire.BYTES, self.denormalizer))
        return b"".join(out)


def _write_piece(piece: Piece) -> bytes:
    kind = b"" if piece.kind == NORMAL else wire.write_field(3, wire.VARINT, piece.kind)
    text = wire.write_field(1, wire.BYTES, piece.text.encode())
    return text + wire.write_field(2, wire.FIXED32, struct.pack("<f", piece.score)) + kind


def _read_piece(data: bytes) -> Piece:
    text, score, kind = "", 0.0, NORMAL
    for number, _, value in wire.read_fields(data):
        if number == 1 and isinstance(value, bytes):
            text = value.decode("utf-8", "strict")
        elif number == 2 and isinstance(value, bytes) and len(value) == 4:
            score = float(struct.unpack("<f", value)[0])
        elif number == 3 and isinstance(value, int):
            kind = value
    if kind == BYTE and text not in BYTE_PIECES:
        raise DataError(
            f"the tokenizer has byte piece {text!r}; byte pieces are written <0x00> to <0xFF>"
        )
    return Piece(text, score, kind)


def _kept(data: bytes, numbers: set[int]) -> tuple[wire.Field, ...]:
    return tuple(
        sorted(
            (entry for entry in wire.read_fields(data) if entry[0] in numbers), key=lambda f: f[0]
        )
    )


def parse(data: bytes) -> SentencePieceModel:
    """Read a `.model` file's bytes into canonical form; raises `DataError` where it is not one."""
    pieces: list[Piece] = []
    trainer: tuple[wire.Field, ...] = ()
    normalizer: tuple[wire.Field, ...] = ()
    denormalizer = b""
    try:
        for number, _, value in wire.read_fields(data):
            if not isinstance(value, bytes):
                raise DataError(
                    f"the tokenizer has a number in field {number}; it is not a SentencePiece model"
                )
            if number == _PIECES:
                pieces.append(_read_piece(value))
            elif number == _TRAINER:
                trainer = _kept(value, _KEPT_TRAINER_FIELDS)
            elif number == _NORMALIZER:
                normalizer = _kept(
                    value, {_CHARSMAP, _DUMMY_PREFIX, _REMOVE_SPACES, _ESCAPE_SPACES}
                )
            elif number == _DENORMALIZER and any(
                entry[0] == _CHARSMAP for entry in wire.read_fields(value)
            ):
                denormalizer = value
    except UnicodeDecodeError:
        raise DataError(
            "the tokenizer has a piece that is not UTF-8; it is not a SentencePiece model"
        ) from None
    if not 2 <= len(pieces) <= 65536:
        raise DataError(
            f"the tokenizer has {len(pieces)} pieces; a SentencePiece model here has 2 to 65,536"
        )
    return SentencePieceModel(tuple(pieces), trainer, normalizer, denormalizer)


def lossless_bpe(texts: list[str], vocab_size: int) -> SentencePieceModel:
    """The lossless model whose learned pieces are `texts`, best first, padded with unused pieces.

    Ids: 0 unknown, 1 `<s>`, 2 to 257 the bytes, then `texts`, then `<unused0>` and so on up to
    `vocab_size`.
    """
    head = [Piece("<unk>", 0.0, UNKNOWN), Piece("<s>", 0.0, CONTROL)]
    head += [Piece(text, 0.0, BYTE) for text in BYTE_PIECES]
    learned = [Piece(text, -float(rank)) for rank, text in enumerate(texts)]
    missing = vocab_size - len(head) - len(learned)
    padding = [Piece(f"<unused{number}>", 0.0, UNUSED) for number in range(missing)]
    trainer = ((_MODEL_TYPE, wire.VARINT, 2), (_BYTE_FALLBACK, wire.VARINT, 1))
    switches = (
        (_DUMMY_PREFIX, wire.VARINT, 1),
        (_REMOVE_SPACES, wire.VARINT, 0),
        (_ESCAPE_SPACES, wire.VARINT, 1),
    )
    return SentencePieceModel(tuple(head + learned + padding), trainer, switches)


def pack(model: SentencePieceModel) -> bytes:
    """The fewest bytes that `unpack` turns into the same model."""
    learned = [piece.text.encode() for piece in model.pieces if piece.kind == NORMAL]
    if max(map(len, learned), default=0) < 256:
        rebuilt = lossless_bpe([text.decode() for text in learned], len(model.pieces))
        if rebuilt == model:
            body = struct.pack("<HH", len(model.pieces) - 1, len(learned)) + bytes(
                map(len, learned)
            )
            return _LISTED + zlib.compress(body + b"".join(learned), 9)
    return _COMPRESSED + lzma.compress(model.serialize(), preset=9 | lzma.PRESET_EXTREME)


def _inflate(data: bytes) -> bytes:
    listed, packed = data.startswith(_LISTED), data[len(_LISTED) :]
    decoder = zlib.decompressobj() if listed else lzma.LZMADecompressor(memlimit=256_000_000)
    try:
        raw = decoder.decompress(packed, MAX_MODEL_BYTES + 1)
    except (zlib.error, lzma.LZMAError) as error:
        raise DataError(f"the packed tokenizer is damaged: {error}") from None
    if len(raw) > MAX_MODEL_BYTES:
        raise DataError(f"the packed tokenizer expands to more than {MAX_MODEL_BYTES:,} bytes")
    if not decoder.eof or decoder.unused_data:
        raise DataError("the packed tokenizer is truncated, or something follows it")
    return raw


def unpack(data: bytes) -> SentencePieceModel:
    """Undo `pack`, or read the bytes of a `.model` file; `DataError` for anything else."""
    if len(data) > MAX_MODEL_BYTES:
        raise DataError(
            f"a tokenizer of {len(data):,} bytes; at most {MAX_MODEL_BYTES:,} are accepted"
        )
    if not data.startswith((_LISTED, _COMPRESSED)):
        return parse(data)
    raw = _inflate(data)
    return parse(raw) if data.startswith(_COMPRESSED) else _unpack_list(raw)


def _unpack_list(raw: bytes) -> SentencePieceModel:
    if len(raw) < 4:
        raise DataError("the packed tokenizer is truncated")
    last, learned = struct.unpack_from("<HH", raw)
    lengths, at = raw[4 : 4 + learned], 4 + learned
    if len(raw) != at + sum(lengths) or last + 1 < 258 + learned:
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
    return lossless_bpe(texts, last + 1)
