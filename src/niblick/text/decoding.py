"""From tokens to bytes and text, one token at a time: what a token adds depends on those before."""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from niblick.text.tokenizer import Tokenizer


class Decoder(Protocol):
    """The bytes of tokens one by one: a `ByteDecoder` or the like."""

    def peek(self, token: int) -> bytes:
        """What `token` would add here."""

    def push(self, token: int) -> bytes:
        """What `token` adds."""


class ByteDecoder:
    """The bytes that tokens add to a text, each after those that were pushed before it."""

    def __init__(self, tokenizer: Tokenizer, previous: int | None) -> None:
        self._tokenizer, self._previous = tokenizer, previous

    def peek(self, token: int) -> bytes:
        """What `token` would add here."""
        table, data = self._tokenizer.byte_table, self._tokenizer.surface(token)
        starts = self._previous is None or bool(table.boundary[self._previous])
        return data[int(starts and bool(table.leading_space[token])) :]

    def push(self, token: int) -> bytes:
        """What `token` adds."""
        data = self.peek(token)
        self._previous = token
        return data


class DecodeStream:
    """Turns ids into text one at a time, giving out complete characters only."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def peek(self, token: int) -> bytes:
        """The bytes that `token` would add here."""
        return self._decoder.peek(token)

    def push(self, token: int) -> str:
        """The characters that `token` completes; often empty inside a multi-byte character."""
        return self._utf8.decode(self._decoder.push(token))

    def flush(self) -> str:
        """What is left: U+FFFD for a character that was never completed, else nothing."""
        return self._utf8.decode(b"", final=True)
