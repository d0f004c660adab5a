"""Scores of the lab's model: any device, many processes, learning at test time."""

from __future__ import annotations

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
from niblick.model.accelerated import accelerate
from niblick.runtime import World, choose_precision, settle_threads
from niblick.scoring.data import Target, load_target
from niblick.scoring.evaluate import score_target
from niblick.scoring.options import EvaluationOptions
from niblick.scoring.proof import Scorer
from niblick.scoring.score import Score


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
    recipe = model.recipe
    target = load_target(dataset, split, vocab_size=recipe.vocab_size, bos_id=recipe.bos_id)
    return evaluate_target(
        model,
        target,
        options=options,
        world=world or World(),
        artifact_sha256=artifact_sha256,
        prove=prove,
        on_progress=on_progress,
    )


def evaluate_target(
    model: LanguageModel,
    target: Target,
    *,
    options: EvaluationOptions,
    world: World,
    artifact_sha256: str | None = None,
    prove: bool = False,
    on_progress: Report | None = None,
) -> Score:
    """`evaluate` for a text that has been checked."""
    settle_threads()
    accelerate(model)
    on_cuda = model.device.type == "cuda"
    options = options.on_device(on_cuda and choose_precision("auto", str(model.device)) == "bf16")
    training = model.training
    model.eval()

    def run() -> tuple[NDArray[np.float32], dict[str, Any]]:
        job = replace(make_job(model, target.tokens, options, world), on_progress=on_progress)
        nll, learnt = _score(job)
        return nll[0], learnt

    try:
        return score_target(
            target,
            model.recipe,
            options,
            run,
            engine="torch",
            processes=world.size,
            artifact_sha256=artifact_sha256,
            prover=(lambda small: make_scorer(model, small)) if prove and world.is_main else None,
            reason=REASON if options.mode == "leaky-ttt" else None,
        )
    finally:
        model.train(training)


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
