"""`--prove`: where a mode would have to leak, if it did, is where the proof cuts."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from niblick.scoring.data import Target
from niblick.scoring.options import EvaluationOptions
from niblick.scoring.proof import Scorer, prove


def prove_target(
    score: Scorer,
    target: Target,
    options: EvaluationOptions,
    *,
    context: int,
    alphabet: int,
    bos_id: int,
) -> dict[str, Any]:
    """Evidence about `score` (the very pass that `options` asks for) on the first tokens of the
    split.

    The byte sums were compared when the target was loaded. Raises `ProofError`.
    """
    step = proof_step(options, context)
    tokens = target.tokens[: 2 * step + context // 2 + 9]
    evidence = prove(
        score,
        tokens,
        alphabet=alphabet,
        cuts=proof_cuts(tokens, step, options, context, bos_id),
        keep=bos_id if options.mode == "document" else None,
        length_free=options.ttt is None and options.mode != "leaky-ttt",
        seed=options.seed,
    )
    return {**asdict(evidence), "bytes": int(target.counts.sum())}


def proof_options(options: EvaluationOptions, context: int) -> EvaluationOptions:
    """The same pass in smaller pieces, so that a short stream has several."""
    return replace(options, batch_tokens=min(options.batch_tokens, 2 * context))


def proof_step(options: EvaluationOptions, context: int) -> int:
    """The period after which the pass does something new: a window, a piece, or a chunk that is
    learnt.
    """
    if options.ttt is not None and options.ttt.method != "lora":
        return options.ttt.chunk
    return options.batch_tokens if options.mode in ("streaming", "document") else context


def proof_cuts(
    tokens: NDArray[np.integer], step: int, options: EvaluationOptions, context: int, bos_id: int
) -> list[int]:
    """Around the first borders of windows, pieces, chunks and documents, and at random places."""
    borders = [
        context,
        step,
        context + options.stride,
        *np.flatnonzero(tokens == bos_id)[1:3].tolist(),
    ]
    if options.ttt is not None:
        borders.append(options.ttt.chunk)
    near = [border + shift for border in borders for shift in (-1, 0)]
    random = np.random.default_rng(options.seed).integers(1, max(len(tokens) - 1, 2), 3)
    return sorted({cut for cut in (*near, *random.tolist()) if 1 <= cut < len(tokens) - 1})
