"""How sure a comparison is: Student's t, Welch's test, paired bootstrap, the record rule,
detectable effects.

Pure functions of numbers, in float64; the distribution functions are computed here (continued
fraction of the incomplete beta function) and agree with scipy's to 1e-9 or better.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from niblick.errors import ScoreError

RECORD_NATS = 0.005
RECORD_P = 0.01


def t_cdf(t: float, df: float) -> float:
    """P(T <= t) for Student's t with `df` degrees of freedom."""
    if math.isinf(t):
        return float(t > 0)
    if t * t < df:  # near the middle the tail's argument rounds to 1
        return 0.5 + math.copysign(0.5 * _incomplete_beta(0.5, df / 2, t * t / (df + t * t)), t)
    tail = 0.5 * _incomplete_beta(df / 2, 0.5, df / (df + t * t))
    return 1 - tail if t > 0 else tail


def t_quantile(p: float, df: float) -> float:
    """The t with P(T <= t) = p, by bisection."""
    if p < 0.5:
        return -t_quantile(1 - p, df)
    low, high = 0.0, 1.0
    while t_cdf(high, df) < p:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if t_cdf(middle, df) < p else (low, middle)
    return (low + high) / 2


def summarise(values: Sequence[float], confidence: float = 0.95) -> dict[str, Any]:
    """Count, mean, standard deviation (n - 1) and the t interval of the mean; None where one value
    allows none.
    """
    data = np.asarray(values, dtype=np.float64)
    if not len(data) or not np.isfinite(data).all():
        raise ScoreError(f"statistics need finite values, not {list(values)}")
    mean = float(data.mean())
    if len(data) == 1:
        return {"n": 1, "mean": mean, "sd": None, "low": None, "high": None}
    sd = float(data.std(ddof=1))
    half = t_quantile((1 + confidence) / 2, len(data) - 1) * sd / math.sqrt(len(data))
    return {"n": len(data), "mean": mean, "sd": sd, "low": mean - half, "high": mean + half}


def block_interval(
    nats: NDArray[np.float32],
    sizes: NDArray[np.int64],
    *,
    block: int = 256,
    confidence: float = 0.95,
) -> tuple[float, float] | None:
    """The t interval of bits per byte over contiguous blocks of a short text.

    Blocks of about `block` bytes stand for independent samples; the ratio is linearised. None where
    there are fewer than four.
    """
    numbers = (np.cumsum(sizes) - 1).clip(min=0) // block
    total = np.bincount(numbers, nats.astype(np.float64)) / math.log(2)
    size = np.bincount(numbers, sizes.astype(np.float64))
    count = len(size)
    if count < 4:
        return None
    bpb = float(total.sum() / size.sum())
    spread = math.sqrt(float(((total - bpb * size) ** 2).sum()) * count / (count - 1))
    half = t_quantile((1 + confidence) / 2, count - 1) * spread / float(size.sum())
    return max(bpb - half, 0.0), bpb + half


@dataclass(frozen=True)
class Welch:
    """Welch's t-test of a difference of means a - b. `p_two` two-sided, `p_less` for "a is
    smaller".
    """

    difference: float
    t: float
    df: float
    p_two: float
    p_less: float


def welch(a: Sequence[float], b: Sequence[float], shift: float = 0.0) -> Welch | None:
    """Test a against b + `shift`; None where either has fewer than two values."""
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64) + shift
    if len(x) < 2 or len(y) < 2:
        return None
    difference = float(x.mean() - y.mean())
    u, v = float(x.var(ddof=1)) / len(x), float(y.var(ddof=1)) / len(y)
    if u + v == 0:
        t = math.copysign(math.inf, difference) if difference else 0.0
        df = float(len(x) + len(y) - 2)
    else:
        t = difference / math.sqrt(u + v)
        df = (u + v) ** 2 / (u * u / (len(x) - 1) + v * v / (len(y) - 1))
    less = t_cdf(t, df)
    return Welch(difference, t, df, min(1.0, 2 * min(less, 1 - less)) if t else 1.0, less)


def paired_difference(differences: Sequence[float], confidence: float = 0.95) -> dict[str, Any]:
    """Mean of paired differences, its t interval and two-sided p; None where one pair allows
    none.
    """
    found = summarise(differences, confidence)
    p, deviation, count = None, found.pop("sd"), found["n"]
    if deviation is not None:
        error = deviation / math.sqrt(count)
        t = abs(found["mean"]) / error if error else math.inf * bool(found["mean"])
        p = 2 * t_cdf(-t, count - 1) if found["mean"] else 1.0
    return found | {"p": p}


@dataclass(frozen=True)
class Record:
    """The record rule: the mean gain in nats per token, the p-value of "at least `RECORD_NATS`",
    and the verdict.
    """

    gain: float
    p: float | None
    holds: bool


def record_rule(new: Sequence[float], old: Sequence[float]) -> Record:
    """Whether `new` nats per token beat `old` by >= 0.005 at p < 0.01 (one-sided Welch against old
    - 0.005).

    Fewer than two seeds on either side cannot hold: the gain is shown, without a p-value.
    """
    gain = float(np.mean(old) - np.mean(new))
    test = welch(new, old, shift=-RECORD_NATS)
    p = None if test is None else test.p_less
    return Record(gain, p, p is not None and p < RECORD_P and gain >= RECORD_NATS)


def detectable_effect(
    sd_a: float, n_a: int, sd_b: float, n_b: int, *, alpha: float = RECORD_P, power: float = 0.8
) -> float | None:
    """The smallest true difference that a one-sided Welch test at `alpha` finds with `power`, at
    this spread.

    (t_{1-alpha} + t_{power}) standard errors; None with fewer than two values on a side.
    """
    if n_a < 2 or n_b < 2:
        return None
    u, v = sd_a**2 / n_a, sd_b**2 / n_b
    if u + v == 0:
        return 0.0
    df = (u + v) ** 2 / (u * u / (n_a - 1) + v * v / (n_b - 1))
    return (t_quantile(1 - alpha, df) + t_quantile(power, df)) * math.sqrt(u + v)


@dataclass(frozen=True)
class Bootstrap:
    """Paired bootstrap of bpb(a) - bpb(b) over documents: estimate, interval, two-sided p, number
    of documents.
    """

    difference: float
    low: float
    high: float
    p: float
    documents: int
    resamples: int


def paired_bootstrap(
    nats_a: Sequence[float],
    nats_b: Sequence[float],
    sizes: Sequence[int],
    *,
    resamples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Bootstrap:
    """Resample whole documents, the same ones for both; `sizes` are bytes of each document, above 0
    in total.

    p is twice the smaller share of resamples on one side of zero, never under 1 / (resamples + 1).
    """
    a, b, size = (np.asarray(x, dtype=np.float64) for x in (nats_a, nats_b, sizes))
    if not len(a) == len(b) == len(size) >= 2:
        raise ScoreError(
            f"a paired bootstrap needs the same 2 or more documents, not {len(a)}, {len(b)},"
            f" {len(size)}"
        )
    gap = (a - b) / math.log(2)
    draws = _resampled_ratios(gap, size, resamples, seed)
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    side = min(int((draws <= 0).sum()), int((draws >= 0).sum()))
    p = min(1.0, 2 * (side + 1) / (resamples + 1))
    return Bootstrap(float(gap.sum() / size.sum()), float(low), float(high), p, len(a), resamples)


def _resampled_ratios(
    gap: NDArray[np.float64], size: NDArray[np.float64], resamples: int, seed: int
) -> NDArray[np.float64]:
    """sum(gap) / sum(size) of resampled documents, drawn in blocks of bounded memory."""
    random, found = np.random.default_rng(seed), []
    rows = max(1, 4_000_000 // len(gap))
    for start in range(0, resamples, rows):
        picks = random.integers(0, len(gap), (min(rows, resamples - start), len(gap)))
        totals = size[picks].sum(axis=1)
        found.append(
            np.divide(gap[picks].sum(axis=1), totals, out=np.zeros(len(totals)), where=totals > 0)
        )
    return np.concatenate(found)


def _incomplete_beta(a: float, b: float, x: float) -> float:
    """Regularised incomplete beta function I_x(a, b)."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    log_front = (
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    )
    if x < (a + 1) / (a + b + 2):
        return math.exp(log_front) * _beta_fraction(a, b, x) / a
    return 1 - math.exp(log_front) * _beta_fraction(b, a, 1 - x) / b


def _beta_fraction(a: float, b: float, x: float) -> float:
    """Continued fraction of the incomplete beta function by Lentz's method (DLMF 8.17.22)."""
    tiny = 1e-300
    c, d = 1.0, 1 / max(1 - (a + b) * x / (a + 1), tiny)
    value = d
    for m in range(1, 100_000):
        for step in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 + step * d
            c = 1 + step / c
            d, c = 1 / (d if abs(d) > tiny else tiny), (c if abs(c) > tiny else tiny)
            value *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return value
