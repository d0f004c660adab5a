"""Every token of a stream scored by an engine, in each mode that learns nothing. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from niblick.engine import Engine
from niblick.plan import Plan
from niblick.scoring.data import Target
from niblick.scoring.evaluate import score_target
from niblick.scoring.options import EvaluationOptions, OptionsError
from niblick.scoring.proof import Scorer
from niblick.scoring.score import Score
from niblick.scoring.windows import Window, chunked_windows, document_windows, sliding_windows

Report = Callable[[float], None]
OpenEngine = Callable[[int], Engine]
_SLOTS = 16  # short documents that are scored side by side


@dataclass(frozen=True)
class _Part:
    """Inputs [start, end) of a window that one call reads in `slot`; `fresh` for its first ones."""

    slot: int
    start: int
    end: int
    fresh: bool


def evaluate_on_engine(
    plan: Plan,
    open_engine: OpenEngine,
    target: Target,
    options: EvaluationOptions,
    *,
    artifact_sha256: str | None = None,
    prove: bool = False,
    on_progress: Report | None = None,
) -> Score:
    """Score `target` on the engine that `open_engine(slots)` gives; it declares the context."""
    model = plan.model
    engine = open_engine(_SLOTS if options.mode in ("document", "chunked") else 1)
    tokens = target.tokens.astype(np.int64)

    def scorer(options: EvaluationOptions, report: Report | None = None) -> Scorer:
        context = options.context or model.context
        return engine_scorer(
            engine, options, context=context, bos_id=model.bos_id, on_progress=report
        )

    return score_target(
        target,
        model,
        options,
        lambda: (scorer(options, on_progress)(tokens, tokens[None])[0], {}),
        engine=engine.name,
        artifact_sha256=artifact_sha256,
        prover=scorer if prove else None,
    )


def engine_scorer(
    engine: Engine,
    options: EvaluationOptions,
    *,
    context: int,
    bos_id: int,
    on_progress: Report | None = None,
) -> Scorer:
    """The pass that `options` asks for: streams and asked tokens in, nats out.

    `engine` declares `context`. What is asked never reaches it before the distribution is there.
    """
    options.check_sizes(context)
    if options.ttt is not None or options.mode == "leaky-ttt":
        raise OptionsError(f"engine {engine.name} learns nothing; adaptation needs --engine torch")

    def score(tokens: NDArray[np.integer], asked: NDArray[np.integer]) -> NDArray[np.float32]:
        nll = np.full((len(asked), max(len(tokens) - 1, 0)), np.nan, dtype=np.float32)
        for parts, scored in _calls(_windows(tokens, options, context, bos_id), engine):
            slots = np.concatenate([np.full(p.end - p.start, p.slot) for p in parts])
            at = np.concatenate([np.arange(p.start, p.end) for p in parts])
            for part in parts:
                if part.fresh:
                    engine.reset(part.slot)
            engine.advance(slots, tokens[at], "all" if scored else "none")
            if scored:
                nll[:, at] = engine.nll(asked[:, at + 1].T).T
                if on_progress is not None:
                    on_progress((int(at[-1]) + 1) / nll.shape[1])
        assert not np.isnan(nll).any() or not nll.size, "a prediction was not scored"
        return nll

    return score


def _windows(
    tokens: NDArray[np.integer], options: EvaluationOptions, context: int, bos_id: int
) -> Iterable[Window]:
    predictions = max(len(tokens) - 1, 0)
    if options.mode == "sliding":
        return sliding_windows(predictions, context, options.stride)
    if options.mode == "chunked":
        return chunked_windows(predictions, context)
    if options.mode == "document":
        return document_windows(tokens, bos_id)
    return [Window(0, predictions, 0)] if predictions else []


def _calls(windows: Iterable[Window], engine: Engine) -> Iterator[tuple[list[_Part], bool]]:
    """Windows cut into calls of at most `engine.columns` tokens, short ones side by side.

    With each call: whether its tokens are scored, or only give context.
    """
    parts: list[_Part] = []
    filled = 0
    for number, window in enumerate(windows):
        start = window.start
        while start < window.end:
            scored = start >= window.first
            if parts and (not scored or filled == engine.columns or len(parts) == engine.slots):
                yield parts, True
                parts, filled = [], 0
            end = min(window.end if scored else window.first, start + engine.columns - filled)
            part = _Part(number % engine.slots, start, end, fresh=start == window.start)
            start = end
            if scored:
                parts.append(part)
                filled += part.end - part.start
            else:
                yield [part], False
    if parts:
        yield parts, True
