"""Proof that a score is honest, taken from outside: only by feeding a scorer token streams and reading its numbers.

A scorer maps a stream of n token ids to the nats of tokens 1 .. n-1. Three things are shown about it, each by
experiment and each with evidence: later tokens do not touch earlier scores by one bit (conditions C1, C3 and C4 of a
valid score), what it gives the alternatives for one token adds up to one (C2), and token bytes are text bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from niblick.errors import ScoreError

Scorer = Callable[[NDArray[np.int64]], NDArray[np.float32]]
Predictor = Callable[[NDArray[np.int64]], NDArray[np.float32]]
SUM_TOLERANCE = 1e-4  # float32 likelihoods of some thousand tokens add up to 1 this closely
LENGTH_TOLERANCE = 1e-3  # nats; a pass of another shape may round otherwise


class ProofError(ScoreError):
    """A scorer that was caught: the message says which experiment, where, and the two numbers."""


@dataclass(frozen=True)
class Evidence:
    """What the experiments compared: numbers of cuts and scores, and the largest deviation of a sum from 1."""

    tokens: int
    cuts: int
    compared: int
    alphabet: int
    distributions: int
    largest_deviation: float


def prove(
    scorer: Scorer, tokens: NDArray[np.integer], *, alphabet: int, cuts: Sequence[int], prefix: int = 6,
    predictor: Predictor | None = None, plain: int = 0, keep: int | None = None, length_free: bool = True,
    seed: int = 0,
) -> Evidence:
    """Run all experiments on `tokens`; `ProofError` at the first that fails.

    `cuts`: last unchanged positions. `prefix`: number of tokens after which every alternative is scored. `predictor`
    gives the full log-distributions (n - 1, alphabet) behind a scorer's numbers; they are checked over the first
    `plain` tokens. `keep`: an id that is neither changed nor introduced (document starts, where they decide the layout
    of passes). `length_free`: the scorer makes no use of the stream's length, so cutting it off must change nothing.
    """
    stream = np.asarray(tokens).astype(np.int64)
    cuts = sorted({cut for cut in cuts if 1 <= cut < len(stream) - 1})
    if not cuts:
        raise ProofError(f"a stream of {len(stream)} tokens is too short to prove anything on; 3 are needed")
    compared = prove_causal(scorer, stream, alphabet=alphabet, cuts=cuts, keep=keep, seed=seed)
    if length_free:
        prove_length_free(scorer, stream, cuts[len(cuts) // 2])
    deviation, distributions = prove_normalised(scorer, stream[:prefix], alphabet), 1
    if predictor is not None and plain > 1:
        deviation = max(deviation, prove_distributions(scorer, predictor, stream[:plain], alphabet))
        distributions += plain - 1
    return Evidence(len(stream), len(cuts), compared, alphabet, distributions, deviation)


def prove_causal(
    scorer: Scorer, stream: NDArray[np.int64], *, alphabet: int, cuts: Sequence[int], keep: int | None, seed: int
) -> int:
    """Replace every token after each cut at random: scores up to the cut keep every bit. Returns how many."""
    random = np.random.default_rng(seed)
    before = scorer(stream)
    compared = 0
    for cut in cuts:
        after = scorer(_perturbed(stream, cut, alphabet, keep, random))
        changed = np.flatnonzero(before[:cut].view(np.uint32) != after[:cut].view(np.uint32))
        if len(changed):
            where = int(changed[0])
            raise ProofError(
                f"not causal: with only tokens after {cut} changed, the score of token {where + 1} went from "
                f"{before[where]:.9g} to {after[where]:.9g} nats"
            )
        compared += cut
    return compared


def prove_length_free(scorer: Scorer, stream: NDArray[np.int64], cut: int) -> None:
    """Cut the stream off after `cut`: the scores that remain stay, but for the rounding of another shape."""
    whole, short = scorer(stream)[:cut], scorer(stream[: cut + 1])
    gap = float(np.abs(whole - short).max())
    if not gap <= LENGTH_TOLERANCE:
        raise ProofError(f"not causal: cutting the stream off after token {cut} changed earlier scores by {gap:.3g} nats")


def prove_normalised(scorer: Scorer, prefix: NDArray[np.int64], alphabet: int) -> float:
    """Score every token of the alphabet after `prefix`: the probabilities add up to 1. Returns |sum - 1|."""
    stream = np.append(prefix, 0)
    total = 0.0
    for token in range(alphabet):
        stream[-1] = token
        total += float(np.exp(-np.float64(scorer(stream)[-1])))
    deviation = abs(total - 1)
    if not deviation <= SUM_TOLERANCE:
        raise ProofError(
            f"not normalised: after {len(prefix)} tokens the probabilities of all {alphabet} tokens add up to {total:.6g}"
        )
    return deviation


def prove_distributions(
    scorer: Scorer, predictor: Predictor, stream: NDArray[np.int64], alphabet: int
) -> float:
    """Each score is an entry of a distribution over the whole alphabet that adds up to 1. Returns the worst |sum - 1|."""
    logs, scores = predictor(stream).astype(np.float64), scorer(stream)
    if logs.shape != (len(stream) - 1, alphabet):
        raise ProofError(f"not normalised: distributions of shape {logs.shape}, not {(len(stream) - 1, alphabet)}")
    deviation = float(np.abs(np.exp(logs).sum(axis=1) - 1).max())
    if not deviation <= SUM_TOLERANCE:
        raise ProofError(f"not normalised: a distribution over {alphabet} tokens is off a sum of 1 by {deviation:.3g}")
    gap = float(np.abs(logs[np.arange(len(scores)), stream[1:]] + scores).max())
    if not gap <= LENGTH_TOLERANCE:
        raise ProofError(f"not normalised: a score differs by {gap:.3g} nats from its entry in the full distribution")
    return deviation


def _perturbed(
    stream: NDArray[np.int64], cut: int, alphabet: int, keep: int | None, random: np.random.Generator
) -> NDArray[np.int64]:
    """`stream` with every token after `cut` replaced by a different one, but for those equal to `keep`."""
    changed = stream.copy()
    tail = changed[cut + 1 :]
    tail[:] = (tail + random.integers(1, alphabet, len(tail))) % alphabet
    if keep is not None:
        tail[tail == keep] = (keep + 1) % alphabet
        tail[stream[cut + 1 :] == keep] = keep
    return changed
