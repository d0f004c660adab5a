"""Engines: what turns tokens into the next token's logits, one slot per sequence, state kept
between calls.

Every engine gives the same tokens: greedy output equals the reference model's, or first differs
where the two best logits are within 1e-3 of each other.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from niblick.engine.sampling import Sampling, choose
from niblick.errors import NiblickError
from niblick.model import LanguageModel, State

CHUNK = 256  # prompt tokens read per call: bounds memory for prompts of any length


class Engine(ABC):
    """`slots` independent sequences over one set of weights.

    `name` says which implementation runs; `state_bytes` and `weight_bytes` are what it holds in
    memory.
    """

    name: str
    vocab_size: int
    slots: int
    state_bytes: int
    weight_bytes: int

    @abstractmethod
    def read(self, slot: int, tokens: Sequence[int] | NDArray[np.int64]) -> None:
        """Forget what `slot` held and read a prompt of one token or more in parallel form."""

    @abstractmethod
    def step(self, tokens: Sequence[int]) -> None:
        """Give one more token to each of the slots 0 .. len(tokens) - 1, which must have read a
        prompt.
        """

    @abstractmethod
    def logits(self, slot: int) -> NDArray[np.float32]:
        """Logits (V,) after the newest token of `slot`; valid until its next `read` or `step`."""

    def choose(self, slot: int, sampling: Sampling, draw: int, vocab: int | None = None) -> int:
        """The next token of `slot`, among the first `vocab` ids: draw number `draw` of the
        sampling's seed.
        """
        return choose(self.logits(slot)[:vocab], sampling, draw)

    def _check(self, slot: int, tokens: NDArray[np.int64]) -> None:
        if not 0 <= slot < self.slots:
            raise NiblickError(
                f"slot {slot} does not exist; this engine has slots 0..{self.slots - 1}"
            )
        if not len(tokens):
            raise NiblickError(
                "a prompt needs at least one token; an empty text starts from the BOS token"
            )
        low, high = int(tokens.min()), int(tokens.max())
        if low < 0 or high >= self.vocab_size:
            bad = low if low < 0 else high
            raise NiblickError(f"token id {bad} is outside the vocabulary 0..{self.vocab_size - 1}")


class ReferenceEngine(Engine):
    """The model itself, `model(tokens, state)`, in whatever precision and device it has."""

    def __init__(self, model: LanguageModel, *, slots: int = 1) -> None:
        self.name = "reference"
        self.vocab_size = model.recipe.vocab_size
        self.slots = slots
        self._model = model
        self._states: list[State] = [model.empty_state() for _ in range(slots)]
        self._logits = np.zeros((slots, self.vocab_size), dtype=np.float32)
        self.state_bytes = sum(state.nbytes for state in self._states)
        self.weight_bytes = sum(p.numel() * p.element_size() for p in model.parameters())

    @torch.inference_mode()
    def read(self, slot: int, tokens: Sequence[int] | NDArray[np.int64]) -> None:
        """See `Engine.read`."""
        ids = np.asarray(tokens, dtype=np.int64)
        self._check(slot, ids)
        self._states[slot] = self._model.empty_state()
        for start in range(0, len(ids), CHUNK):
            self._run(slot, ids[start : start + CHUNK])

    @torch.inference_mode()
    def step(self, tokens: Sequence[int]) -> None:
        """See `Engine.step`."""
        for slot, token in enumerate(tokens):
            ids = np.array([token], dtype=np.int64)
            self._check(slot, ids)
            self._run(slot, ids)

    def logits(self, slot: int) -> NDArray[np.float32]:
        """See `Engine.logits`."""
        row: NDArray[np.float32] = self._logits[slot]
        return row

    def _run(self, slot: int, ids: NDArray[np.int64]) -> None:
        device = self._model.tok_emb.weight.device
        batch = torch.from_numpy(ids)[None].to(device)
        hidden, after = self._model.hidden(batch, self._states[slot], keep=True)
        assert after is not None
        self._states[slot] = after
        self._logits[slot] = self._model.head(hidden[:, -1]).float()[0].cpu().numpy()
