"""A model of niblick in lm-evaluation-harness, on the engine: `niblick-lm-eval --model niblick
--model_args path=MODEL`, or `get_model("niblick")` once this module is imported.

Contexts begin with a BOS. A text longer than the recipe's context is cut, and rolled over, as the
harness does for Hugging Face models. No torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from numpy.typing import NDArray

import niblick
from niblick.engine import Engine, Sampling
from niblick.engine.continuation import Continuation

_SLOTS, _MAX_TOKENS = 16, 256
_Request = tuple[Any, list[int], list[int]]  # the texts, ids of the context and what follows


@register_model("niblick")
class NiblickLM(TemplateLM):  # type: ignore[misc]
    """`path`: any MODEL; `tokenizer`, `engine` and `threads` as for the command line."""

    def __init__(
        self,
        path: str,
        *,
        tokenizer: str | None = None,
        engine: Any = None,
        threads: int | None = None,
        **ignored: Any,
    ) -> None:
        super().__init__()
        self.niblick = niblick.load(path, tokenizer=tokenizer)
        self.max_length: int = self.niblick.recipe.model.context
        self._engine: Engine = self.niblick.open_engine(
            slots=_SLOTS, threads=threads and int(threads), context=self.max_length, kind=engine
        )

    @property
    def eot_token_id(self) -> int:
        """The BOS, which also ends a document."""
        return self.niblick.tokenizer.bos_id

    @property
    def tokenizer_name(self) -> str:
        """What caches of requests know the tokenizer by."""
        return self.niblick.tokenizer.sha256

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **options: Any
    ) -> list[int]:
        """Ids of a text, with a BOS unless told otherwise."""
        tokenizer = self.niblick.tokenizer
        found = tokenizer.encode if add_special_tokens is False else tokenizer.encode_document
        return [int(token) for token in found(string)]

    def _loglikelihood_tokens(
        self, requests: Sequence[_Request], disable_tqdm: bool = False, **options: Any
    ) -> list[tuple[float, bool]]:
        """The sum of ln p of what follows each context, and whether greedy decoding gives it."""
        found = [(0.0, True)] * len(requests)
        rows = [np.array((c + t)[-(self.max_length + 1) :]) for _, c, t in requests]
        for places in _batches([len(row) - 1 for row in rows], self._engine):
            logits = self._logits([rows[place][:-1] for place in places])
            for place, own in zip(places, logits, strict=True):
                text, _, following = requests[place]
                found[place] = _answer(own[-len(following) :], np.array(following))
                if text is not None:
                    self.cache_hook.add_partial("loglikelihood", text, found[place])
        return found

    def _logits(self, rows: list[NDArray[np.integer]]) -> list[NDArray[np.float32]]:
        """Logits (T, V) of each row, side by side where they fit into one call."""
        engine = self._engine
        for slot in range(len(rows)):
            engine.reset(slot)
        if sum(map(len, rows)) <= engine.columns:
            slots = np.concatenate([np.full(len(row), slot) for slot, row in enumerate(rows)])
            engine.advance(slots, np.concatenate(rows), "all")
            cuts = np.cumsum([len(row) for row in rows])[:-1]
            return np.split(engine.rows(len(slots)).copy(), cuts)
        (row,) = rows
        parts = []
        for start in range(0, len(row), engine.columns):
            part = row[start : start + engine.columns]
            engine.advance(np.zeros(len(part), np.int32), part, "all")
            parts.append(engine.rows(len(part)).copy())
        return [np.concatenate(parts)]

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """ln p of whole texts, each token once, in windows of the context."""
        found = []
        for request in requests:
            (text,) = request.args
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(text, add_special_tokens=False),
                prefix_token=self.eot_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            parts = [(None, *make_disjoint_window(window)) for window in windows]
            total = sum(nats for nats, _ in self._loglikelihood_tokens(parts))
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), total)
            found.append(total)
        return found

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """What follows each context, up to a stop string or the document's end."""
        return [self._generate(*request.args) for request in requests]

    def _generate(self, context: str, settings: dict[str, Any]) -> str:
        options = normalize_gen_kwargs(settings, _MAX_TOKENS)
        limit = int(options["max_gen_toks"])
        room = max(self.max_length - limit, 1)
        writer = Continuation(
            self._engine,
            self.niblick.tokenizer,
            self.tok_encode(context)[-room:],
            _sampling(options),
            limit,
            tuple(stop for stop in handle_stop_sequences(options.get("until"), eos=None) if stop),
        )
        text = "".join(writer)
        if self.niblick.tokenizer.byte_table.leading_space.any():
            text = text.removeprefix(" ")  # as transformers decodes what stands by itself
        self.cache_hook.add_partial("generate_until", (context, settings), text)
        return text


def _sampling(options: dict[str, Any]) -> Sampling:
    """Greedy unless the task asks for a temperature above 0 and sampling."""
    warm = float(options.get("temperature") or 0.0)
    return Sampling(
        temperature=(warm or 1.0) if options.get("do_sample") else 0.0,
        top_k=int(options.get("top_k") or 0),
        top_p=float(options.get("top_p") or 1.0),
        seed=int(options.get("seed") or 0),
    )


def _batches(lengths: list[int], engine: Engine) -> Iterator[list[int]]:
    """Places of rows that one call takes, shortest first; a row longer than a call stands alone."""
    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lengths.__getitem__):
        size = sum(lengths[each] for each in batch) + lengths[place]
        if batch and (size > engine.columns or len(batch) == engine.slots):
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def _answer(logits: NDArray[np.float32], targets: NDArray[np.integer]) -> tuple[float, bool]:
    """The sum of ln p(target) and whether every target is the best, of logits (N, V)."""
    wide = logits.astype(np.float64)
    top = wide.max(axis=1)
    total = top + np.log(np.exp(wide - top[:, None]).sum(axis=1))
    chosen = np.take_along_axis(wide, targets[:, None], axis=1)[:, 0]
    return float((chosen - total).sum()), bool((wide.argmax(axis=1) == targets).all())
