"""Proof that a score is honest, taken from outside: only by feeding a scorer token streams and
reading its numbers.

A scorer reads `tokens` (n,) and answers for `asked` (K, n): nats (K, n - 1), where entry i says how
likely asked token i + 1 is after tokens 0 .. i. In a real evaluation the stream asks for itself;
here the two are told apart, so that a distribution can be seen whole. Shown by experiment, each
with evidence: no later token, the scored one included, touches a distribution by one bit
(conditions C1, C3 and C4 of a valid score), and every distribution adds up to one over the alphabet
(C2).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from niblick.errors import ScoreError

Scorer = Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.float32]]
SUM_TOLERANCE = 1e-4  # float32 likelihoods of some thousand tokens add up to 1 this closely
LENGTH_TOLERANCE = 1e-3  # nats; a pass of another shape may round otherwise
_ALTERNATIVES = 1 << 21  # alphabet times tokens that the sums are taken over


class ProofError(ScoreError):
    """A scorer that was caught: the message says which experiment, where, and the two numbers."""


@dataclass(frozen=True)
class Evidence:
    """What the experiments compared: numbers of cuts and scores, and the largest deviation of a sum
    from 1.
    """

    tokens: int
    cuts: int
    compared: int
    alphabet: int
    distributions: int
    largest_deviation: float


def prove(
    scorer: Scorer,
    tokens: NDArray[np.integer],
    *,
    alphabet: int,
    cuts: Sequence[int],
    keep: int | None = None,
    length_free: bool = True,
    seed: int = 0,
) -> Evidence:
    """Run all experiments on `tokens`; `ProofError` at the first that fails.

    `cuts`: last unchanged positions. `keep`: an id that is neither changed nor introduced (document
    starts, where they decide the layout of passes). `length_free`: the scorer makes no use of the
    stream's length, so cutting it off must change nothing.
    """
    stream = np.asarray(tokens).astype(np.int64)
    cuts = sorted({cut for cut in cuts if 1 <= cut < len(stream) - 1})
    if not cuts:
        raise ProofError(
            f"a stream of {len(stream)} tokens is too short to prove anything on; 3 are needed"
        )
    compared = prove_causal(scorer, stream, alphabet=alphabet, cuts=cuts, keep=keep, seed=seed)
    if length_free:
        prove_length_free(scorer, stream, cuts[len(cuts) // 2])
    few = stream[: max(3, min(49, _ALTERNATIVES // alphabet))]
    deviation = prove_normalised(scorer, few, alphabet)
    return Evidence(len(stream), len(cuts), compared, alphabet, len(few) - 1, deviation)


def prove_causal(
    scorer: Scorer,
    stream: NDArray[np.int64],
    *,
    alphabet: int,
    cuts: Sequence[int],
    keep: int | None,
    seed: int,
) -> int:
    """Replace every token after each cut at random, asking for the same as before: predictions 0 ..
    cut, which read nothing that changed, keep every bit. The token after the cut is among the
    replaced. Returns how many compared.
    """
    random = np.random.default_rng(seed)
    asked, compared = stream[None], 0
    before = scorer(stream, asked)[0]
    for cut in cuts:
        after = scorer(_perturbed(stream, cut, alphabet, keep, random), asked)[0]
        changed = np.flatnonzero(
            before[: cut + 1].view(np.uint32) != after[: cut + 1].view(np.uint32)
        )
        if len(changed):
            where = int(changed[0])
            raise ProofError(
                f"not causal: with only tokens after {cut} changed, the score of token {where + 1}"
                f" went from {before[where]:.9g} to {after[where]:.9g} nats"
            )
        compared += cut + 1
    return compared


def prove_length_free(scorer: Scorer, stream: NDArray[np.int64], cut: int) -> None:
    """Cut the stream off after `cut`: the scores that remain stay, but for the rounding of another
    shape.
    """
    short = stream[: cut + 1]
    gap = float(np.abs(scorer(stream, stream[None])[0, :cut] - scorer(short, short[None])[0]).max())
    if not gap <= LENGTH_TOLERANCE:
        raise ProofError(
            f"not causal: cutting the stream off after token {cut} changed earlier scores by"
            f" {gap:.3g} nats"
        )


def prove_normalised(scorer: Scorer, stream: NDArray[np.int64], alphabet: int) -> float:
    """Ask for every token of the alphabet after every token of `stream`: each distribution adds up
    to 1, and the stream's own scores are its entries, bit for bit. Returns the worst |sum - 1|.
    """
    asked = np.repeat(np.arange(alphabet)[:, None], len(stream), axis=1)
    table = scorer(stream, asked)  # (V, n - 1)
    deviation = np.abs(np.exp(-table.astype(np.float64)).sum(axis=0) - 1)
    worst = int(deviation.argmax())
    if not deviation[worst] <= SUM_TOLERANCE:
        total = float(np.exp(-table[:, worst].astype(np.float64)).sum())
        raise ProofError(
            f"not normalised: after {worst + 1} tokens the probabilities of all {alphabet} tokens"
            f" add up to {total:.6g}"
        )
    own = table[stream[1:], np.arange(len(stream) - 1)]
    if not np.array_equal(own, scorer(stream, stream[None])[0]):
        raise ProofError(
            "not normalised: the stream's scores are not the entries of its distributions"
        )
    return float(deviation[worst])


def _perturbed(
    stream: NDArray[np.int64],
    cut: int,
    alphabet: int,
    keep: int | None,
    random: np.random.Generator,
) -> NDArray[np.int64]:
    """`stream` with every token after `cut` replaced by a different one, but for those equal to
    `keep`.
    """
    changed = stream.copy()
    tail = changed[cut + 1 :]
    tail[:] = (tail + random.integers(1, alphabet, len(tail))) % alphabet
    if keep is not None:
        tail[tail == keep] = (keep + 1) % alphabet
        tail[stream[cut + 1 :] == keep] = keep
    return changed
