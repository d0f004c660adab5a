"""Tokenizers: text to uint16 ids and back, with the exact bytes each id stands for.

Every tokenizer is rebuilt from its own bytes alone and is immutable. Decoding is defined here by
one table of byte strings for all kinds, so that the bytes counted and the bytes decoded cannot
differ; for SentencePiece models the result equals the library's own decoding. Text that is not
valid Unicode (lone surrogates) is refused.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from niblick.errors import DataError
from niblick.files import package_folder
from niblick.registry import Registry
from niblick.text import spmodel
from niblick.text.bytetable import ByteTable, refuse_surrogates
from niblick.text.decoding import ByteDecoder, Decoder, DecodeStream
from niblick.text.encoder import NativeEncoder, native_encoder
from niblick.text.spmodel import SPACE, Piece, SentencePieceModel

if TYPE_CHECKING:
    import sentencepiece

Tokens = NDArray[np.uint16]
Ids = Sequence[int] | NDArray[np.integer]
CHALLENGE = "fineweb-1024"
_CHALLENGE_FILE = "fineweb_1024_bpe.model"
_CHALLENGE_SHA256 = "bbf81bf15bd66fc78d927bc9c87f06d17a80fc7d35a5131c616bef7bb34b44b4"
_MARK = b"nT\x00"  # in front of the name of a tokenizer that is not a SentencePiece model
_ENCODED = 1 << 22  # characters encoded at once: the library takes some 40 bytes for each


class Tokenizer(ABC):
    """A frozen mapping between text and ids below `vocab_size`.

    `lossless` says whether `decode(encode(text)) == text` for every text; `sha256` identifies the
    mapping, whatever form it was stored in; `to_bytes` is the smallest such form and
    `load_tokenizer` reads it back.
    """

    kind: str
    name: str
    vocab_size: int
    bos_id: int
    lossless: bool
    sha256: str
    uncounted: Sequence[int] = ()  # ids for text that no piece spells, of no bytes

    @property
    @abstractmethod
    def byte_table(self) -> ByteTable:
        """Bytes of each token; see `ByteTable`."""

    @abstractmethod
    def to_bytes(self) -> bytes:
        """A self-contained serialisation, as small as this project can make it."""

    @abstractmethod
    def to_file_bytes(self) -> bytes:
        """What a dataset folder stores: a standard `.model` where there is one."""

    @abstractmethod
    def reference_decode(self, ids: Sequence[int]) -> str:
        """The text of `ids` by other means than `byte_table`, to check it against."""

    @property
    @abstractmethod
    def _surfaces(self) -> list[bytes]:
        """Bytes of each token, the space of a leading U+2581 included."""

    @abstractmethod
    def _encode(self, text: str) -> Sequence[int] | Tokens:
        """Ids of valid, non-empty text."""

    def encode(self, text: str) -> Tokens:
        """Ids of `text` without a BOS; `DataError` if it holds a lone surrogate."""
        refuse_surrogates(text)
        return np.asarray(self._encode(text) if text else (), dtype=np.uint16)

    def encode_document(self, text: str) -> Tokens:
        """Ids of `text` with a BOS in front."""
        ids = self.encode(text)
        document = np.empty(len(ids) + 1, dtype=np.uint16)
        document[0], document[1:] = self.bos_id, ids
        return document

    def encode_counted(self, text: str) -> Tokens:
        """`encode_document`; `DataError` where a token stands for bytes that nothing counts."""
        ids = self.encode_document(text)
        if np.isin(ids, self.uncounted).any():
            raise DataError(
                "the tokenizer has no pieces for some characters of the text, and none for bytes"
            )
        return ids

    def token_bytes(self, token: int, previous: int | None) -> bytes:
        """Bytes that `token` adds after `previous`; None stands for the start of the text."""
        return self.byte_decoder(() if previous is None else (previous,)).peek(token)

    def decode_bytes(self, ids: Iterable[int], after: Ids = ()) -> bytes:
        """The UTF-8 bytes of `ids` where those in `after` stand before them; control, unknown and
        unused tokens give none.
        """
        tokens = np.fromiter(ids, dtype=np.int64)
        if not len(tokens):
            return b""
        self._check(int(tokens.min()), int(tokens.max()))
        table = self.byte_table
        begins = not len(after) or bool(table.boundary[after[-1]])
        starts = np.concatenate([[begins], table.boundary[tokens[:-1]]])
        skip = (table.leading_space[tokens] & starts).tolist()
        surfaces, pairs = self._surfaces, zip(tokens.tolist(), skip, strict=True)
        return b"".join([surfaces[t][1:] if s else surfaces[t] for t, s in pairs])

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def byte_decoder(self, after: Ids = ()) -> Decoder:
        """What gives the bytes of tokens one by one, the first after those in `after`."""
        return ByteDecoder(self, int(after[-1]) if len(after) else None)

    def decode_stream(self, after: Ids = ()) -> DecodeStream:
        """A decoder for tokens one by one, the first after those in `after` (none: a new text)."""
        return DecodeStream(self.byte_decoder(after))

    def silent_name(self, token: int) -> str:
        """What to call a token that means something and has no bytes; "" for all others."""
        return ""

    def surface(self, token: int) -> bytes:
        """Bytes of `token` inside a text; `DataError` for one that is outside the vocabulary."""
        self._check(token, token)
        return self._surfaces[token]

    def _check(self, lowest: int, highest: int) -> None:
        if lowest < 0 or highest >= self.vocab_size:
            bad = lowest if lowest < 0 else highest
            raise DataError(f"token id {bad} is outside the vocabulary of {self.vocab_size}")


TOKENIZERS: Registry[Callable[[bytes], Tokenizer]] = Registry("tokenizer")
"""By name: what makes a tokenizer from its own state, the bytes that `stored` puts in a file."""


def stored(name: str, state: bytes = b"") -> bytes:
    """`to_bytes` of a registered tokenizer: its name, and what its registration makes it from."""
    return _MARK + name.encode() + (b"\x00" + state if state else b"")


class BytesTokenizer(Tokenizer):
    """One token per UTF-8 byte; as in the challenge 0 pad, 1 BOS, 2 EOS, 3 unknown come first."""

    kind = "bytes"
    name = "bytes"
    vocab_size = 260
    bos_id = 1
    lossless = True
    sha256 = hashlib.sha256(stored("bytes")).hexdigest()
    _FIRST = 4

    @cached_property
    def byte_table(self) -> ByteTable:
        """Every byte token counts 1, the four others 0."""
        ids = np.arange(self.vocab_size)
        return ByteTable(
            (ids >= self._FIRST).astype(np.int32),
            np.zeros(self.vocab_size, bool),
            ids < self._FIRST,
        )

    def to_bytes(self) -> bytes:
        """A marker: there is nothing to store."""
        return stored("bytes")

    def to_file_bytes(self) -> bytes:
        """The same marker."""
        return stored("bytes")

    def reference_decode(self, ids: Sequence[int]) -> str:
        """The bytes of `ids`, read as UTF-8."""
        return bytes(token - self._FIRST for token in ids if token >= self._FIRST).decode(
            "utf-8", "replace"
        )

    @cached_property
    def _surfaces(self) -> list[bytes]:
        return [b""] * self._FIRST + [bytes([value]) for value in range(256)]

    def _encode(self, text: str) -> Sequence[int]:
        return [value + self._FIRST for value in text.encode()]


@TOKENIZERS.register("bytes")
def _bytes_tokenizer(state: bytes) -> BytesTokenizer:
    if state:
        raise DataError(f"the tokenizer 'bytes' has no state, but {len(state):,} bytes follow it")
    return BytesTokenizer()


@TOKENIZERS.register("case")
def _case_tokenizer(state: bytes) -> Tokenizer:
    from niblick.text.case import CaseTokenizer

    return CaseTokenizer.read(state)


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model; encoding is the library's, but literal U+2581 is spelled in bytes.
    Compiled code that gives the same ids does it where there is some (`niblick.text.encoder`).

    A model that normalises its input (the challenge's) is used as it is, and is not `lossless`.
    """

    kind = "sentencepiece"

    def __init__(self, model: SentencePieceModel) -> None:
        if model.space_as_suffix:
            raise DataError(
                "the tokenizer marks spaces at the end of words; only leading U+2581 is supported"
            )
        canonical = model.serialize()
        self._model = model
        self.vocab_size = len(model.pieces)
        self.lossless = model.lossless
        self.sha256 = hashlib.sha256(canonical).hexdigest()
        self.bos_id = self._find_bos()
        self._encoded_model = model.with_dummy_prefix(False) if self.lossless else model
        self._engine = _processor(self._encoded_model.serialize())
        self._encoded = 0  # characters so far
        spelled = {p.text: i for i, p in enumerate(model.pieces) if p.kind == spmodel.BYTE}
        self._byte_ids = [spelled.get(piece, -1) for piece in spmodel.BYTE_PIECES]
        self.uncounted = [i for i, p in enumerate(model.pieces) if p.kind == spmodel.UNKNOWN]
        published = self.sha256 == _CHALLENGE_SHA256
        self.name = CHALLENGE if published else f"{model.kind_name}-{self.vocab_size}"

    @property
    def model(self) -> SentencePieceModel:
        """The SentencePiece model, as it is stored."""
        return self._model

    def _find_bos(self) -> int:
        for index, piece in enumerate(self._model.pieces):
            if piece.kind == spmodel.CONTROL and piece.text == "<s>":
                return index
        raise DataError("the tokenizer has no control piece '<s>' to put in front of documents")

    @cached_property
    def byte_table(self) -> ByteTable:
        """Section 0's rule; without a dummy prefix a leading space is always part of `base`."""
        pieces = self._model.pieces
        boundary = np.isin([piece.kind for piece in pieces], _SILENT)
        spaced = [piece.kind != spmodel.BYTE and piece.text.startswith(SPACE) for piece in pieces]
        leading = np.array(spaced) & ~boundary & self._model.dummy_prefix
        sizes = np.array([len(surface) for surface in self._surfaces], dtype=np.int32)
        return ByteTable(sizes - leading, leading, boundary)

    def to_bytes(self) -> bytes:
        """The packed form of `spmodel.pack`."""
        return spmodel.pack(self._model)

    def to_file_bytes(self) -> bytes:
        """A `.model` file that SentencePiece itself reads."""
        return self._model.serialize()

    @cached_property
    def _library(self) -> sentencepiece.SentencePieceProcessor:
        return _processor(self._model.serialize())

    def reference_decode(self, ids: Sequence[int]) -> str:
        """The sentencepiece library's own decoding of one document."""
        return str(self._library.Decode(list(ids)))

    @cached_property
    def _surfaces(self) -> list[bytes]:
        return [_surface(piece) for piece in self._model.pieces]

    @cached_property
    def _native(self) -> NativeEncoder | None:
        return native_encoder(self._encoded_model)

    def _encode(self, text: str) -> Sequence[int] | Tokens:
        if not self.lossless:
            return self._encode_part(text)
        return self._encode_exactly(" " + text if self._model.dummy_prefix else text)

    def _encode_part(self, text: str) -> Sequence[int] | Tokens:
        self._encoded += len(text)
        if self._encoded > _WORTH_TABLES and self._native is not None:
            found = self._native.encode(text)
            if found is not None:
                return found
        ids: list[int] = self._engine.Encode(text)
        return ids

    def _encode_exactly(self, text: str) -> Tokens:
        """By parts between literal U+2581."""
        found: list[Sequence[int] | Tokens] = []
        for index, part in enumerate(text.split(SPACE)):
            if index:
                found.append(self.spelled(SPACE))
            found += self.encode_parts(part)
        return np.concatenate([np.asarray(ids, dtype=np.uint16) for ids in found])

    def encode_parts(self, text: str) -> Iterator[Sequence[int] | Tokens]:
        """Ids of `text` as it is, without U+2581 and without a space in front, where the tokenizer
        is lossless; by parts, as the library holds all of one in memory.
        """
        for start in range(0, len(text), _ENCODED):
            yield self._encode_part(text[start : start + _ENCODED])

    def spelled(self, text: str) -> list[int]:
        """The byte pieces of `text`, where the tokenizer has all of them."""
        return [self._byte_ids[value] for value in text.encode()]

    def encode_lowered(self, text: str) -> Sequence[int] | Tokens | None:
        """Ids of `niblick.text.case.lowered(text)` by compiled code, where there is some and it is
        worth it.
        """
        self._encoded += len(text)
        fits = self._encoded > _WORTH_TABLES and 2 * len(text) <= _ENCODED
        return self._native.encode(text, lower=True) if fits and self._native else None

    def decode_part(self, ids: Sequence[int]) -> str:
        """The library's decoding of a stretch inside of a text."""
        return str(self._engine.Decode(list(ids)))


def _processor(model: bytes) -> sentencepiece.SentencePieceProcessor:
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(model)
    except (RuntimeError, OSError) as error:
        raise DataError(
            f"sentencepiece refuses the tokenizer: {str(error).splitlines()[0]}"
        ) from None
    return processor


_WORTH_TABLES = 4_096  # characters to encode before the compiled encoder's tables are built
_SILENT = (spmodel.CONTROL, spmodel.UNKNOWN, spmodel.UNUSED)


def _surface(piece: Piece) -> bytes:
    if piece.kind in _SILENT:
        return b""
    if piece.kind == spmodel.BYTE:
        return bytes([int(piece.text[1:-1], 16)])
    return piece.text.replace(SPACE, " ").encode()


def _challenge_file() -> bytes:
    return (package_folder() / "text" / "assets" / _CHALLENGE_FILE).read_bytes()


def load_tokenizer(spec: str | Path | bytes, *, kind: str | None = None) -> Tokenizer:
    """The tokenizer that `spec` names or is.

    It may be "fineweb-1024", a registered name, the path of a `.model`, or what `to_bytes` gave.
    `kind` ("sentencepiece", "bytes" or "case") is checked where given. Raises `DataError`.
    """
    if isinstance(spec, str) and spec == CHALLENGE:
        data = _challenge_file()
    elif isinstance(spec, str) and spec in TOKENIZERS:
        data = stored(spec)
    else:
        data = spec if isinstance(spec, bytes) else _read_model(Path(spec))
    if data.startswith(_MARK):
        start, _, state = data[len(_MARK) :].partition(b"\x00")
        name = start[:32].decode("utf-8", "replace")
        if name not in TOKENIZERS:
            raise DataError(f"unknown tokenizer {name!r}; known: {', '.join(TOKENIZERS)}")
        tokenizer = TOKENIZERS[name](state)
    else:
        tokenizer = SentencePieceTokenizer(spmodel.unpack(data))
    if kind is not None and kind != tokenizer.kind:
        raise DataError(f"tokenizer kind {kind!r} does not fit: this one is {tokenizer.kind!r}")
    return tokenizer


def _read_model(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(
            f"tokenizer {str(path)!r} cannot be read ({error.strerror}); give bytes, {CHALLENGE},"
            " a .model file, a run or a model"
        ) from None
