"""Statistics agree with an independent library and with values computed by hand."""

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats

from niblick.errors import ScoreError
from niblick.scoring.statistics import (
    detectable_effect,
    paired_bootstrap,
    record_rule,
    summarise,
    t_cdf,
    t_quantile,
    welch,
)

freedoms = st.floats(1, 500)


@settings(max_examples=100, deadline=None)
@given(st.floats(-50, 50), freedoms)
@example(6e-8, 32.0)
def test_the_t_distribution_equals_scipys(t, df):
    assert t_cdf(t, df) == pytest.approx(stats.t.cdf(t, df), rel=1e-8, abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.floats(0.001, 0.999), freedoms)
def test_the_t_quantile_equals_scipys(p, df):
    assert t_quantile(p, df) == pytest.approx(stats.t.ppf(p, df), rel=1e-6, abs=1e-9)


samples = st.lists(st.floats(0.5, 3), min_size=2, max_size=8).filter(lambda x: np.std(x) > 1e-6)


@settings(max_examples=60, deadline=None)
@given(samples, samples)
def test_welchs_test_equals_scipys(a, b):
    ours, theirs = welch(a, b), stats.ttest_ind(a, b, equal_var=False)
    assert ours is not None
    assert ours.t == pytest.approx(theirs.statistic, rel=1e-9, abs=1e-12)
    assert ours.p_two == pytest.approx(theirs.pvalue, rel=1e-6, abs=1e-12)
    assert ours.p_less == pytest.approx(
        stats.ttest_ind(a, b, equal_var=False, alternative="less").pvalue, rel=1e-6, abs=1e-12
    )


def test_a_summary_of_three_seeds_is_the_one_computed_by_hand():
    found = summarise([1.0, 2.0, 3.0])
    half = 4.302652729911275 / math.sqrt(3)  # t of 0.975 with 2 degrees of freedom
    assert (found["mean"], found["sd"], found["n"]) == (2.0, 1.0, 3)
    assert found["low"] == pytest.approx(2 - half) and found["high"] == pytest.approx(2 + half)


def test_one_value_has_no_spread_and_no_values_are_refused():
    assert summarise([1.5]) == {"n": 1, "mean": 1.5, "sd": None, "low": None, "high": None}
    with pytest.raises(ScoreError, match="finite values"):
        summarise([])
    with pytest.raises(ScoreError, match="nan"):
        summarise([1.0, math.nan])


def test_the_record_rule_wants_the_gain_and_the_certainty():
    old = [2.0000, 2.0004, 1.9996]
    assert record_rule([1.990, 1.9903, 1.9897], old).holds
    assert not record_rule([1.996, 1.9963, 1.9957], old).holds  # certain, but a gain of 0.004 only
    assert not record_rule([1.99, 1.95, 2.02], old).holds  # a large mean gain, but uncertain
    assert not record_rule([1.9], old).holds  # one seed proves nothing
    assert record_rule([1.9], old).p is None


def test_equal_seeds_without_any_spread_are_no_evidence():
    found = welch([1.0, 1.0], [1.0, 1.0])
    assert found is not None and found.t == 0 and found.p_two == 1


def test_the_detectable_effect_is_found_as_often_as_promised():
    effect = detectable_effect(0.01, 4, 0.01, 4, alpha=0.05, power=0.8)
    random = np.random.default_rng(0)
    a, b = random.normal(-effect, 0.01, (4000, 4)), random.normal(0, 0.01, (4000, 4))
    share = (
        stats.ttest_ind(a, b, axis=1, equal_var=False, alternative="less").pvalue < 0.05
    ).mean()
    assert 0.75 < share < 0.87


def test_more_seeds_detect_less():
    assert detectable_effect(0.01, 10, 0.01, 10) < detectable_effect(0.01, 3, 0.01, 3)
    assert detectable_effect(0.01, 1, 0.01, 3) is None


def test_the_bootstrap_estimate_is_the_difference_of_bits_per_byte():
    found = paired_bootstrap([10.0, 20.0], [8.0, 15.0], [4, 6], resamples=500)
    assert found.difference == pytest.approx((30 - 23) / math.log(2) / 10)
    assert found.low <= found.difference <= found.high


def test_the_bootstrap_tells_a_steady_gain_from_noise():
    random = np.random.default_rng(1)
    sizes = random.integers(100, 1000, 200)
    base = sizes * random.normal(1.0, 0.1, 200)
    steady = paired_bootstrap(base - 0.01 * sizes, base, sizes, resamples=2000)
    noise = paired_bootstrap(base + random.normal(0, 1, 200) * 10, base, sizes, resamples=2000)
    assert steady.p < 0.01 and steady.high < 0
    assert noise.p > 0.01 or abs(noise.difference) > 0.01
    assert steady == paired_bootstrap(base - 0.01 * sizes, base, sizes, resamples=2000)


def test_the_bootstrap_interval_covers_the_truth_about_as_often_as_it_says():
    random, covered = np.random.default_rng(2), 0
    for _ in range(150):
        gap, sizes = random.normal(0.02, 0.1, 60), np.full(60, 1)
        found = paired_bootstrap(gap * math.log(2), np.zeros(60), sizes, resamples=300)
        covered += found.low <= 0.02 <= found.high
    assert 0.85 < covered / 150 <= 1


def test_unpaired_documents_are_refused():
    with pytest.raises(ScoreError, match="same 2 or more documents"):
        paired_bootstrap([1.0, 2.0], [1.0], [1, 1])
