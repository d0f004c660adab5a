"""The lab's engine: the LanguageModel itself, in whatever precision and on whatever device it is.

It runs every mixer, also those of plugins, and is what the other engines are held against.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from niblick.engine.base import Engine, Ids, Wanted
from niblick.model import LanguageModel, State


class TorchEngine(Engine):
    """`model(tokens, state)` for each slot."""

    def __init__(self, model: LanguageModel, *, slots: int = 1, context: int | None = None) -> None:
        self.name, self.slots, self.columns = "torch", slots, 256
        self.vocab_size = model.recipe.vocab_size
        self._model, self._context = model, context
        self._states: list[State] = [model.empty_state(context=context) for _ in range(slots)]
        self._logits = np.zeros((slots, self.vocab_size), dtype=np.float32)
        self._rows = self._logits[:0]
        self.state_bytes = sum(state.nbytes for state in self._states)
        self.weight_bytes = sum(p.numel() * p.element_size() for p in model.parameters())

    def reset(self, slot: int, *, at: int = 0) -> None:
        """See `Engine.reset`."""
        empty = self._model.empty_state(context=self._context)
        self._states[slot] = State(empty.tensors, at, empty.context)

    @torch.inference_mode()
    def advance(self, slots: Ids, tokens: Ids, wanted: Wanted) -> None:
        """See `Engine.advance`."""
        owners, ids = (np.asarray(each, dtype=np.int64) for each in (slots, tokens))
        cuts, rows = np.flatnonzero(np.diff(owners)) + 1, []
        for slot, part in zip(owners[[0, *cuts]], np.split(ids, cuts), strict=True):
            batch = torch.from_numpy(part)[None].to(self._model.device)
            hidden, after = self._model.hidden(batch, self._states[slot], keep=True)
            assert after is not None
            self._states[slot] = after
            if wanted != "none":
                last = hidden if wanted == "all" else hidden[:, -1:]
                rows.append(self._model.head(last).float()[0].cpu().numpy())
                self._logits[slot] = rows[-1][-1]
        if rows:
            self._rows = np.concatenate(rows)

    def logits(self, slot: int) -> NDArray[np.float32]:
        """See `Engine.logits`."""
        row: NDArray[np.float32] = self._logits[slot]
        return row

    def rows(self, count: int) -> NDArray[np.float32]:
        """See `Engine.rows`."""
        return self._rows[:count]
