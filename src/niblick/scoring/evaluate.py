"""From a pass over a checked text to a Score: every token once, summed in float64, proven if asked.

What computes the pass, an engine or the lab's model, is the caller's choice.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from niblick.recipe.model import ModelRecipe
from niblick.scoring.data import Target
from niblick.scoring.options import EvaluationOptions
from niblick.scoring.proof import Scorer
from niblick.scoring.proving import proof_options, prove_target
from niblick.scoring.score import Score, make_score

Learnt = dict[str, Any]
Pass = Callable[[], tuple[NDArray[np.float32], Learnt]]


def score_target(
    target: Target,
    model: ModelRecipe,
    options: EvaluationOptions,
    run: Pass,
    *,
    engine: str,
    processes: int = 1,
    artifact_sha256: str | None = None,
    prover: Callable[[EvaluationOptions], Scorer] | None = None,
    reason: str | None = None,
) -> Score:
    """The Score of `run`, which gives nats (n - 1,) and what was learnt on the way.

    `prover` makes the scorer that is proven with given options, outside the time that the score
    tells; `reason` says why the score is not valid. Raises `ScoreError`.
    """
    began = time.perf_counter()
    nll, learnt = run()
    seconds = time.perf_counter() - began
    details: dict[str, Any] = {
        "data": target.name,
        "tokenizer": target.tokenizer.name,
        "lossless": target.tokenizer.lossless,
        "documents": len(target.documents),
        "processes": processes,
        "learnt": learnt,
    }
    if reason is not None:
        details["reason"] = reason
    if prover is not None:
        context = options.context or model.context
        small = proof_options(options, context)
        details["proof"] = prove_target(
            prover(small),
            target,
            small,
            context=context,
            alphabet=model.vocab_size,
            bos_id=model.bos_id,
        )
    return make_score(
        nll,
        target.counts,
        target.documents,
        seconds=seconds,
        mode=options.mode,
        split=target.split,
        settings=options.settings(model.context, engine),
        data_sha256=target.sha256,
        tokenizer_sha256=target.tokenizer.sha256,
        artifact_sha256=artifact_sha256,
        valid=reason is None,
        details=details,
    )
