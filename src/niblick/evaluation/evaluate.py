"""From a model and a split to a Score: check the data, score every token once, sum in float64."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from niblick.data.dataset import Dataset
from niblick.evaluation.adaptation import adapt_weights
from niblick.evaluation.adapters import adapt_documents
from niblick.evaluation.leaky import REASON, learn_before_scoring
from niblick.evaluation.modes import Job, make_job, score_stream
from niblick.evaluation.tally import Report
from niblick.model import LanguageModel
from niblick.runtime import World
from niblick.scoring.data import Target, load_target
from niblick.scoring.options import EvaluationOptions
from niblick.scoring.proof import Scorer
from niblick.scoring.proving import proof_options, prove_target
from niblick.scoring.score import Score, make_score


def evaluate(
    model: LanguageModel,
    dataset: Dataset,
    *,
    split: str,
    options: EvaluationOptions,
    world: World | None = None,
    artifact_sha256: str | None = None,
    prove: bool = False,
    on_progress: Report | None = None,
) -> Score:
    """Score `split` with `model` on the device the model is on; the model is left as it was.

    Every process of `world` must call this (with a process group where there are several) and gets
    the same Score (the evidence of the proof aside, which the main process takes). Raises
    `ScoreError` where the data is not whole or not the model's, and with `prove` where the pass is
    caught reading ahead or not normalised; `seconds` leaves the proof out. `on_progress` is told
    the share of the split that this process has scored.
    """
    world = world or World()
    recipe = model.recipe
    target = load_target(dataset, split, vocab_size=recipe.vocab_size, bos_id=recipe.bos_id)
    training = model.training
    model.eval()
    began = time.perf_counter()
    nll, facts = _score(
        replace(make_job(model, target.tokens, options, world), on_progress=on_progress)
    )
    seconds = time.perf_counter() - began
    details = _details(dataset, target, options, world, facts)
    if prove and world.is_main:
        details["proof"] = _prove(model, target, options)
    model.train(training)
    return make_score(
        nll[0],
        target.counts,
        target.documents,
        seconds=seconds,
        mode=options.mode,
        split=target.split,
        settings=options.settings(recipe.context),
        data_sha256=target.sha256,
        tokenizer_sha256=dataset.tokenizer.sha256,
        artifact_sha256=artifact_sha256,
        valid=options.mode != "leaky-ttt",
        details=details,
    )


def score_tokens(
    model: LanguageModel, tokens: NDArray[np.integer], options: EvaluationOptions, world: World
) -> NDArray[np.float32]:
    """Nats of tokens 1 .. n-1 of a stream, exactly as `evaluate` takes them."""
    scores: NDArray[np.float32] = _score(make_job(model, tokens, options, world))[0][0]
    return scores


def make_scorer(model: LanguageModel, options: EvaluationOptions) -> Scorer:
    """The pass of `evaluate` as proofs see it: streams and asked tokens in, nats out, in this
    process alone.
    """
    return lambda tokens, asked: _score(make_job(model, tokens, options, World(), asked))[0]


def _score(job: Job) -> tuple[NDArray[np.float32], dict[str, Any]]:
    """Nats (K, n - 1), and what was learnt on the way."""
    options = job.options
    facts: dict[str, Any] = {}
    options.check_sizes(job.context)
    if options.ttt is not None:
        adapt = adapt_documents if options.ttt.method == "lora" else adapt_weights
        tally, facts = adapt(job, options.ttt)
    else:
        if options.mode == "leaky-ttt":
            job, facts = learn_before_scoring(job, options.leaky)
        tally = score_stream(job)
    return tally.collect(job.world, job.device), facts


def _prove(model: LanguageModel, target: Target, options: EvaluationOptions) -> dict[str, Any]:
    recipe, context = model.recipe, options.context or model.recipe.context
    small = proof_options(options, context)
    return prove_target(
        make_scorer(model, small),
        target,
        small,
        context=context,
        alphabet=recipe.vocab_size,
        bos_id=recipe.bos_id,
    )


def _details(
    dataset: Dataset,
    target: Target,
    options: EvaluationOptions,
    world: World,
    learnt: dict[str, Any],
) -> dict[str, Any]:
    details: dict[str, Any] = {
        "data": dataset.name,
        "tokenizer": dataset.tokenizer.name,
        "lossless": dataset.tokenizer.lossless,
        "documents": len(target.documents),
        "processes": world.size,
        "learnt": learnt,
    }
    if options.mode == "leaky-ttt":
        details["reason"] = REASON
    return details
