"""From tokens to what a client is sent: text up to its stop strings, likelihoods, JSON.

A `Choice` follows one text. Guarantees: what it gives out is whole characters and no part of a stop
string; all its pieces together are the text that `Model.generate` gives.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from niblick.engine import Likelihoods, TextStream
from niblick.serve.batcher import Progress
from niblick.serve.request import Order, Text
from niblick.text.tokenizer import Tokenizer


@dataclass
class _Entry:
    """A token as `logprobs` lists it; its text takes characters `offset` to `end`."""

    offset: int
    end: int
    token: str
    likelihood: float | None
    others: dict[str, float] | None


class Choice:
    """One text as it is written; `finish` is OpenAI's reason once it has ended, `tokens` counts
    those written.
    """

    def __init__(self, order: Order, text: Text, index: int, tokenizer: Tokenizer) -> None:
        self.index, self.text, self.tokens = index, text, 0
        self.finish: str | None = None
        self._order, self._tokenizer = order, tokenizer
        self._stream = TextStream(tokenizer, text.ids, order.stops)
        self._ready: list[str] = []
        self._entries: list[_Entry] = []
        self._told = not order.echo  # whether the prompt has been given out
        self._before = self._given = 0  # characters of the prompt; all that went out
        self._place = tokenizer.byte_decoder(text.ids)  # where the next token's name is read
        if order.echo:
            self._place = tokenizer.byte_decoder(text.ids[: text.shown])
            self._prompt, self._read = tokenizer.decode_stream(text.ids[: text.shown]), text.shown
            if not text.shown and order.likeliest is not None:
                self._note_prompt(None)

    def take(self, progress: Progress) -> bool:
        """Follow one round's progress; whether the text ended here though its job goes on."""
        for found in progress.prompt:
            self._note_prompt(found)
        if self.finish is not None:
            return False
        if not self._told and (progress.tokens or progress.finish):
            self._tell_prompt()
        for at, token in enumerate(progress.tokens):
            self.tokens += 1
            offset = self._before + self._stream.reached
            self._ready.append(self._stream.push(token))
            if self._order.likeliest is not None:
                reached = self._before + self._stream.reached
                self._note(token, offset, reached, progress.likelihoods[at])
            if self._stream.stopped:
                self.finish = "stop"
                return progress.finish is None
        if progress.finish is not None:
            self._ready.append(self._stream.flush())
            ended = self._stream.stopped or progress.finish == "document"
            self.finish = "stop" if ended else "length"
        return False

    def ready(self) -> bool:
        """Whether there is something to give out."""
        return self.finish is not None or any(self._ready)

    def piece(self) -> tuple[str, dict[str, Any] | None]:
        """The text that may go out now, and the likelihoods of the tokens in it."""
        text = "".join(self._ready)
        self._ready.clear()
        self._given += len(text)
        if self._order.likeliest is None:
            return text, None
        if self._stream.stopped:
            out = [entry for entry in self._entries if entry.offset < self._given]
            self._entries = []
        else:
            last = self.finish is not None
            count = sum(entry.end <= self._given or last for entry in self._entries)
            out, self._entries = self._entries[:count], self._entries[count:]
        return text, {
            "tokens": [entry.token for entry in out],
            "token_logprobs": [entry.likelihood for entry in out],
            "top_logprobs": [entry.others for entry in out],
            "text_offset": [entry.offset for entry in out],
        }

    def _note_prompt(self, found: Likelihoods | None) -> None:
        """The next token of the prompt, with its likelihood where it has one."""
        token = int(self.text.ids[self._read])
        offset = self._before
        self._before += len(self._prompt.push(token))
        self._note(token, offset, self._before, found)
        self._read += 1

    def _tell_prompt(self) -> None:
        """The whole prompt has been read: give it out."""
        self._told = True
        ids = self.text.ids.tolist()
        self._ready.append(self._tokenizer.decode(ids[self.text.shown :]))
        self._place, self._before = self._tokenizer.byte_decoder(ids), len(self._ready[-1])

    def _note(self, token: int, offset: int, reached: int, found: Likelihoods | None) -> None:
        others: dict[str, float] | None = None
        if found is not None:
            others = {}
            for other, value in [*found.others, (token, found.own)]:
                name = self._named(other) or self._tokenizer.silent_name(other)
                others.setdefault(name, value)
        own = None if found is None else found.own
        self._entries.append(_Entry(offset, reached, self._named(token), own, others))
        self._place.push(token)

    def _named(self, token: int) -> str:
        """A token's text; one that is part of a character is spelled in bytes, as OpenAI does."""
        data = self._place.peek(token)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{value:02x}" for value in data)
