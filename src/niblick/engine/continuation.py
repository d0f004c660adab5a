"""Continuations as they are produced: tokens from an engine, and text that is always complete
Unicode.

A text stream never gives out half a character, nor any part of a stop string.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from niblick.engine.base import Engine
from niblick.engine.batch import NO_TOKEN, SEQUENCE, sequence
from niblick.engine.sampling import Sampling
from niblick.errors import NiblickError
from niblick.text.tokenizer import Ids, Tokenizer

_STEPS = 16  # tokens of each text between two looks at stop strings


def continue_tokens(
    engine: Engine,
    prompt: Sequence[int],
    sampling: Sampling,
    *,
    max_tokens: int,
    vocab: int | None = None,
    slot: int = 0,
) -> Iterator[int]:
    """Up to `max_tokens` ids that follow `prompt` (at least one id), among the first `vocab` ids,
    one by one.
    """
    engine.read(slot, prompt)
    for draw in range(max_tokens):
        token = engine.choose(slot, sampling, draw, vocab)
        yield token
        if draw + 1 < max_tokens:
            engine.step([token])


def continue_batch(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    max_tokens: int,
    vocab: int | None = None,
) -> list[list[int]]:
    """`max_tokens` ids for each of at most `engine.slots` prompts, stepped together; prompt i draws
    from seed + i.
    """
    if len(prompts) > engine.slots:
        raise NiblickError(f"{len(prompts)} prompts do not fit the engine's {engine.slots} slots")
    for slot, prompt in enumerate(prompts):
        engine.read(slot, prompt)
    each = [_reseeded(sampling, slot) for slot in range(len(prompts))]
    found: list[list[int]] = [[] for _ in prompts]
    for draw in range(max_tokens):
        tokens = [engine.choose(slot, own, draw, vocab) for slot, own in enumerate(each)]
        for row, token in zip(found, tokens, strict=True):
            row.append(token)
        if draw + 1 < max_tokens:
            engine.step(tokens)
    return found


def _reseeded(sampling: Sampling, slot: int) -> Sampling:
    return Sampling(
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        seed=sampling.seed + slot,
    )


@dataclass
class Continuation:
    """A text being generated: iterate over its pieces; the other fields are final once that has
    ended.

    `finish` says why it ended: "length", "stop" (a stop string, left out of the text) or "document"
    (the model began another document).
    """

    engine: Engine
    tokenizer: Tokenizer
    prompt: list[int]
    sampling: Sampling
    max_tokens: int
    stop: tuple[str, ...] = ()
    across_documents: bool = False
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    finish: str = "length"

    def __iter__(self) -> Iterator[str]:
        """Pieces of text, none of them empty."""
        stream = TextStream(self.tokenizer, self.prompt, self.stop)
        for token in self._ids():
            piece = stream.push(token)
            self.text += piece
            if piece:
                yield piece
            if stream.stopped:
                self.finish = "stop"
                return
        piece = stream.flush()
        self.finish = "stop" if stream.stopped else self.finish
        self.text += piece
        if piece:
            yield piece

    def _ids(self) -> Iterator[int]:
        ids = continue_tokens(
            self.engine,
            self.prompt,
            self.sampling,
            max_tokens=self.max_tokens,
            vocab=self.tokenizer.vocab_size,
        )
        for token in ids:
            if token == self.tokenizer.bos_id and not self.across_documents:
                self.finish = "document"
                return
            self.tokens.append(token)
            yield token


def start_text(
    engine: Engine,
    tokenizer: Tokenizer,
    prompt: str,
    sampling: Sampling,
    *,
    max_tokens: int,
    stop: Sequence[str] = (),
    across_documents: bool = False,
) -> Continuation:
    """A continuation of `prompt` (any valid Unicode, also empty), read as the beginning of a
    document.

    Raises `NiblickError` where the tokenizer does not fit the model or a limit is out of range.
    """
    if tokenizer.vocab_size > engine.vocab_size:
        raise NiblickError(
            f"the tokenizer has {tokenizer.vocab_size} tokens but the model only"
            f" {engine.vocab_size}; give the tokenizer that the model was trained with"
        )
    if max_tokens < 0:
        raise NiblickError(f"max-tokens must be >= 0, not {max_tokens}")
    if "" in stop:
        raise NiblickError("a stop string must not be empty")
    ids = tokenizer.encode_document(prompt).tolist()
    return Continuation(
        engine, tokenizer, ids, sampling, max_tokens, tuple(stop), across_documents=across_documents
    )


def write_texts(
    engine: Engine,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    sampling: Sampling,
    *,
    max_tokens: int,
    stop: Sequence[str] = (),
    across_documents: bool = False,
) -> list[str]:
    """What follows each of several prompts, as many at a time as the engine has slots; prompt i
    draws from seed + i. Each text is the one that `start_text` gives alone.
    """
    options = {"max_tokens": max_tokens, "stop": stop, "across_documents": across_documents}
    begun = [
        start_text(engine, tokenizer, prompt, _reseeded(sampling, i), **options)  # type: ignore[arg-type]
        for i, prompt in enumerate(prompts)
    ]
    waiting, free = deque(begun if max_tokens else ()), list(range(engine.slots))
    writing: dict[int, tuple[Continuation, TextStream]] = {}
    rows = np.zeros(engine.slots, dtype=SEQUENCE)
    end = None if across_documents else tokenizer.bos_id
    while waiting or writing:
        while waiting and free:
            text, slot = waiting.popleft(), free.pop()
            engine.read(slot, text.prompt)
            rows[slot] = sequence(
                slot, text.sampling, max_tokens=max_tokens, vocab=tokenizer.vocab_size, end=end
            )[0]
            writing[slot] = text, TextStream(tokenizer, text.prompt, text.stop)
        slots = sorted(writing)
        live = rows[slots]
        columns = engine.extend(live, _STEPS).T.tolist()
        rows[slots] = live
        for slot, tokens in zip(slots, columns, strict=True):
            if not _take(*writing[slot], tokens, end, left=int(rows[slot]["left"])):
                del writing[slot]
                free.append(slot)
    return [text.text for text in begun]


def _take(
    text: Continuation, stream: TextStream, tokens: list[int], end: int | None, *, left: int
) -> bool:
    """Add tokens to a text, up to its end; whether it goes on."""
    for token in tokens:
        if token in (NO_TOKEN, end):
            break
        text.tokens.append(token)
        text.text += stream.push(token)
        if stream.stopped:
            return False
    if left:
        return True
    text.text += stream.flush()
    return False


class TextStream:
    """The text of tokens one by one, after those in `after`, up to the first of `stops`; `reached`
    counts the characters of all tokens so far, those that are held back included.
    """

    def __init__(self, tokenizer: Tokenizer, after: Ids, stops: Sequence[str]) -> None:
        self._decoder, self._filter = tokenizer.decode_stream(after), StopFilter(stops)
        self.reached = 0

    @property
    def stopped(self) -> bool:
        """Whether a stop string has come."""
        return self._filter.stopped

    def push(self, token: int) -> str:
        """The text that may go out now."""
        text = self._decoder.push(token)
        self.reached += len(text)
        return self._filter.push(text) if text else ""

    def flush(self) -> str:
        """What was held back, once no more tokens come."""
        text = self._decoder.flush()
        self.reached += len(text)
        out = self._filter.push(text)
        return out if self.stopped else out + self._filter.flush()


class StopFilter:
    """Passes text on up to the first stop string; holds back whatever could still become one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """The text that may go out now."""
        if self.stopped:
            return ""
        self._held += text
        found = [at for at in (self._held.find(stop) for stop in self._stops) if at >= 0]
        if found:
            self.stopped = True
            out, self._held = self._held[: min(found)], ""
            return out
        keep = self._undecided()
        out, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return out

    def flush(self) -> str:
        """What was held back, once no more text comes."""
        out, self._held = self._held, ""
        return out

    def _undecided(self) -> int:
        """Length of the longest end of the held text that begins a stop string."""
        longest = max((len(stop) for stop in self._stops), default=1) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stops):
                return length
        return 0
