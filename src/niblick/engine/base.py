"""Engines: what turns tokens into logits and likelihoods, one slot per sequence.

State is kept between calls and has constant size. Every engine gives the same tokens: greedy output
equals the model's, or first differs where the two best logits are within 1e-3 of each other.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from niblick.engine.batch import NO_TOKEN, Sequences, sampling_of
from niblick.engine.sampling import Sampling, choose
from niblick.errors import NiblickError

Wanted = Literal["none", "last", "all"]
Ids = Sequence[int] | NDArray[np.integer]


class Engine(ABC):
    """`slots` independent sequences over one set of weights.

    `name` says which implementation runs; `columns` is the most tokens of one call of `advance`;
    `state_bytes` and `weight_bytes` are what it holds in memory.
    """

    name: str
    vocab_size: int
    slots: int
    columns: int
    state_bytes: int
    weight_bytes: int

    @abstractmethod
    def reset(self, slot: int, *, at: int = 0) -> None:
        """Forget what `slot` held; its next token stands at position `at`."""

    @abstractmethod
    def advance(self, slots: Ids, tokens: Ids, wanted: Wanted) -> None:
        """Give each slot its tokens (n,), those of a slot consecutive and in order.

        `wanted`: the logits of no token, of each slot's last one, or of all.
        """

    @abstractmethod
    def logits(self, slot: int) -> NDArray[np.float32]:
        """Logits (V,) after the newest token of `slot`; valid until its next token."""

    @abstractmethod
    def rows(self, count: int) -> NDArray[np.float32]:
        """Logits (n, V) of the `count` tokens of an `advance` that wanted all; valid until the
        next one.
        """

    def nll(self, targets: NDArray[np.integer]) -> NDArray[np.float32]:
        """Nats (n, K) of targets (n, K) after each token of an `advance` that wanted all."""
        logits = self.rows(len(targets)).astype(np.float64)
        top = logits.max(axis=1, keepdims=True)
        total = top + np.log(np.exp(logits - top).sum(axis=1, keepdims=True))
        found: NDArray[np.float32] = (
            total - np.take_along_axis(logits, np.asarray(targets, dtype=np.int64), axis=1)
        ).astype(np.float32)
        return found

    def read(self, slot: int, tokens: Ids, *, at: int = 0) -> None:
        """Forget what `slot` held and read a prompt of one token or more."""
        ids = self.check(slot, tokens)
        self.reset(slot, at=at)
        for start in range(0, len(ids), self.columns):
            part = ids[start : start + self.columns]
            last = start + len(part) == len(ids)
            self.advance(np.full(len(part), slot), part, "last" if last else "none")

    def step(self, tokens: Ids) -> None:
        """Give one more token to each of the slots 0 .. len(tokens) - 1."""
        if len(tokens):
            self.advance(range(len(tokens)), self.check(len(tokens) - 1, tokens), "last")

    def choose(self, slot: int, sampling: Sampling, draw: int, vocab: int | None = None) -> int:
        """The next token of `slot`, among the first `vocab` ids.

        It is draw number `draw` of the sampling's seed.
        """
        return choose(self.logits(slot)[:vocab], sampling, draw)

    def extend(self, sequences: Sequences, steps: int) -> NDArray[np.int32]:
        """`steps` more tokens (steps, n) of each of n sequences, whose rows are brought up to date.

        Their slots hold logits. `NO_TOKEN` stands where a sequence has none left; its last token is
        not read, since nothing follows it.
        """
        found = np.full((steps, len(sequences)), NO_TOKEN, dtype=np.int32)
        for tokens in found:
            for at in np.flatnonzero(sequences["left"] > 0):
                row = sequences[at]
                token = self.choose(
                    int(row["slot"]), sampling_of(row), int(row["draw"]), int(row["vocab"])
                )
                tokens[at], row["draw"] = token, row["draw"] + 1
                row["left"] = 0 if token == row["end"] else row["left"] - 1
            live = sequences["left"] > 0
            if live.any():
                self.advance(sequences["slot"][live], tokens[live], "last")
        return found

    def check(self, slot: int, tokens: Ids) -> NDArray[np.int64]:
        """`tokens` as int64 ids; `NiblickError` where an id or the slot does not exist."""
        ids = np.asarray(tokens, dtype=np.int64)
        if not 0 <= slot < self.slots:
            raise NiblickError(
                f"slot {slot} does not exist; this engine has slots 0..{self.slots - 1}"
            )
        if not len(ids):
            raise NiblickError(
                "a prompt needs at least one token; an empty text starts from the BOS token"
            )
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= self.vocab_size:
            bad = low if low < 0 else high
            raise NiblickError(f"token id {bad} is outside the vocabulary 0..{self.vocab_size - 1}")
        return ids
