"""Case operators: capital ASCII letters as marks before small ones, so that a word has the same
pieces however it is written.

A word is a run of ASCII letters. `TITLE` stands before a word that begins with a capital, and
before every later capital of a word that is not all in capitals; `CAPS` before a word of two
letters or more, all in capitals. A mark stands before the space that precedes a word: a piece that
begins with a space needs none without it. Marks are pieces of their own and in no other; the two
characters that they are written as are spelled in bytes where a text has them, as U+2581 is. So
every text comes back, and no byte is counted for a mark.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from niblick.errors import DataError
from niblick.text import spmodel
from niblick.text.bytetable import ByteTable
from niblick.text.decoding import Decoder
from niblick.text.spmodel import SPACE
from niblick.text.tokenizer import Ids, SentencePieceTokenizer, Tokenizer, Tokens, stored

TITLE, CAPS = MARKS = "\ufdd0", "\ufdd1"  # noncharacters: Unicode leaves them to programs
LITERAL = re.compile(f"([{SPACE}{TITLE}{CAPS}])")
_CAPITALS = re.compile(" ?(?<![A-Za-z])[A-Z][A-Za-z]*|[A-Z]")
_CAPITAL = re.compile("[A-Z]")
_LETTERS = re.compile(rb"[A-Za-z]*")


def lowered(text: str) -> str:
    """`text`, which has no marks, with marks for its capitals."""
    return _CAPITALS.sub(_lowered_word, text)


def _lowered_word(found: re.Match[str]) -> str:
    word = found[0]
    letters = word.lstrip(" ")
    if len(letters) > 1 and letters.isupper():
        return CAPS + word.lower()
    small, rest = word[: len(word) - len(letters) + 1].lower(), letters[1:]
    if not rest.islower():
        rest = _CAPITAL.sub(lambda capital: TITLE + capital[0].lower(), rest)
    return TITLE + small + rest


def segments(texts: Iterable[str]) -> Iterator[str]:
    """What a model of texts with marks is trained on: the text between them, from a text's leading
    space on.
    """
    for text in texts:
        for part in LITERAL.split(" " + text)[::2]:
            yield from (found for found in re.split(f"[{TITLE}{CAPS}]", lowered(part)) if found)


class _State:
    """Where decoding stands: whether the text `starts`, the mark that is in force (an id), and
    whether a space may still come between it and its word.
    """

    __slots__ = ("mark", "space", "starts")

    def __init__(self, starts: bool, mark: int | None = None, space: bool = False) -> None:
        self.starts, self.mark, self.space = starts, mark, space


class CaseDecoder:
    """`ByteDecoder` of a tokenizer with case operators."""

    def __init__(self, tokenizer: CaseTokenizer, after: Ids) -> None:
        self._tokenizer, self.state = tokenizer, _State(True)
        first = len(after)
        while first and not tokenizer.settles(int(after[first - 1])):
            first -= 1
        for token in after[max(first - 1, 0) :]:
            self.push(int(token))

    def peek(self, token: int) -> bytes:
        """What `token` would add here."""
        return self._tokenizer.next(self.state, token)[0]

    def push(self, token: int) -> bytes:
        """What `token` adds."""
        data, self.state = self._tokenizer.next(self.state, token)
        return data


class CaseTokenizer(Tokenizer):
    """Case operators before a lossless BPE or unigram model whose pieces include the marks."""

    kind = "case"
    lossless = True

    def __init__(self, plain: SentencePieceTokenizer) -> None:
        model = plain.model
        if not (plain.lossless and model.dummy_prefix and model.kind_name in ("bpe", "unigram")):
            raise DataError("case operators need a lossless model with a space before the text")
        held = {p.text: i for i, p in enumerate(model.pieces) if set(p.text) & set(MARKS)}
        normal = all(model.pieces[place].kind == spmodel.NORMAL for place in held.values())
        if held.keys() != set(MARKS) or not normal:
            raise DataError("the tokenizer has not each mark of case operators as its own piece")
        self._plain = plain
        self.title, self.caps = held[TITLE], held[CAPS]
        self.name = f"case-{plain.name}"
        self.vocab_size, self.bos_id = plain.vocab_size, plain.bos_id
        self.sha256 = hashlib.sha256(stored("case", model.serialize())).hexdigest()

    @classmethod
    def read(cls, state: bytes) -> CaseTokenizer:
        """From the packed form of its model; `DataError` for anything else."""
        if not state:
            raise DataError("the tokenizer 'case' has to be trained: name it 'train-case'")
        return cls(SentencePieceTokenizer(spmodel.unpack(state)))

    @property
    def plain(self) -> SentencePieceTokenizer:
        """The model of marked text."""
        return self._plain

    @cached_property
    def byte_table(self) -> ByteTable:
        """The model's, but marks have no bytes."""
        table = self._plain.byte_table
        marks = np.zeros(self.vocab_size, bool)
        marks[[self.title, self.caps]] = True
        return ByteTable(np.where(marks, 0, table.base), table.leading_space, table.boundary, marks)

    def to_bytes(self) -> bytes:
        """A name, and the model packed."""
        return stored("case", spmodel.pack(self._plain.model))

    def to_file_bytes(self) -> bytes:
        """The same: no other program has this kind."""
        return self.to_bytes()

    def reference_decode(self, ids: Sequence[int]) -> str:
        """The library's decoding of what stands between marks, raised by patterns."""
        spans = [at for at, token in enumerate(ids) if token in (self.title, self.caps)]
        text, first = "", True
        for start, end in pairwise([-1, *spans, len(ids)]):
            part = self._plain.decode_part(ids[start + 1 : end])
            if first and part:
                part, first = part.removeprefix(" "), False
            if start >= 0:
                pattern = " ?[a-z]" if ids[start] == self.title else " ?[a-z]+"
                part = re.sub(rf"\A{pattern}", lambda found: found[0].upper(), part)
            text += part
        return text

    def silent_name(self, token: int) -> str:
        """Names of the marks."""
        return {self.title: "<title>", self.caps: "<caps>"}.get(token, "")

    @cached_property
    def _surfaces(self) -> list[bytes]:
        marks = (self.title, self.caps)
        surfaces = self._plain._surfaces
        return [b"" if token in marks else data for token, data in enumerate(surfaces)]

    def _encode(self, text: str) -> Tokens:
        found: list[Sequence[int] | Tokens] = []
        for index, part in enumerate(LITERAL.split(" " + text)):
            if index % 2:
                found.append(self._plain.spelled(part))
            elif (ids := self._plain.encode_lowered(part)) is not None:
                found.append(ids)
            else:
                found += self._plain.encode_parts(lowered(part))
        return np.concatenate([np.asarray(ids, dtype=np.uint16) for ids in found])

    @cached_property
    def _settling(self) -> list[bool]:
        silent = self.byte_table.boundary.tolist()
        return [
            silent[token] or (data not in (b"", b" ") and not data[-1:].isalpha())
            for token, data in enumerate(self._surfaces)
        ]

    def settles(self, token: int) -> bool:
        """Whether nothing before `token` matters after it."""
        self._check(token, token)
        return self._settling[token]

    def byte_decoder(self, after: Ids = ()) -> Decoder:
        """What decodes tokens one by one after those in `after`."""
        return CaseDecoder(self, after)

    def next(self, state: _State, token: int) -> tuple[bytes, _State]:
        """The bytes that `token` adds in a state of decoding, and the state after it."""
        self._check(token, token)
        if token in (self.title, self.caps):
            return b"", _State(state.starts, token, True)
        table = self.byte_table
        if table.boundary[token]:
            return b"", _State(True)
        skip = state.starts and bool(table.leading_space[token])
        data, after = self._raised(self._surfaces[token][skip:], state)
        after.starts = False
        return data, after

    def _raised(self, data: bytes, state: _State) -> tuple[bytes, _State]:
        """`data` as the mark in force makes it, and what is in force afterwards."""
        if state.mark is None:
            return data, _State(False)
        at = int(state.space and data[:1] == b" ")
        if at == len(data):
            return data, _State(False, state.mark, state.space and not at)
        found = _LETTERS.match(data, at)
        assert found is not None
        end = min(found.end(), at + 1) if state.mark == self.title else found.end()
        goes_on = state.mark == self.caps and end == len(data)
        raised = data[:at] + data[at:end].upper() + data[end:]
        return raised, _State(False, state.mark) if goes_on else _State(False)

    def decode_bytes(self, ids: Iterable[int], after: Ids = ()) -> bytes:
        """The UTF-8 bytes of `ids` where those in `after` stand before them."""
        tokens = np.fromiter(ids, dtype=np.int64)
        if not len(tokens):
            return b""
        self._check(int(tokens.min()), int(tokens.max()))
        state = CaseDecoder(self, after).state
        texts = self._unraised(tokens, state.starts)
        table, found = self.byte_table, list[bytes]()
        assert table.marks is not None
        cuts = np.flatnonzero(table.marks[tokens] | table.boundary[tokens]).tolist()
        for start, end in pairwise([0, *cuts, len(tokens)]):
            token = int(tokens[start])
            if cuts and start >= cuts[0]:
                state = _State(False, token if table.marks[token] else None, True)
            found.append(self._raised(b"".join(texts[start:end]), state)[0])
        return b"".join(found)

    def _unraised(self, tokens: NDArray[np.int64], starts: bool) -> list[bytes]:
        """The bytes of each token, in small letters where it has a mark."""
        table = self.byte_table
        assert table.marks is not None
        first = np.flatnonzero(table.boundary if starts else table.base)[0]
        before = np.concatenate([[first], tokens[:-1]])
        skip = table.base[tokens] + table.leading_space[tokens] - table.count(tokens, before)
        surfaces, pairs = self._surfaces, zip(tokens.tolist(), skip.tolist(), strict=True)
        return [surfaces[token][size:] for token, size in pairs]
