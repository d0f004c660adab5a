"""The sweep's table: paired intervals that agree with scipy, and the rule that gives up what is
behind.
"""

from __future__ import annotations

import json

import pytest
from scipy import stats

from niblick.scoring.statistics import paired_difference
from niblick.scoring.sweep import Trial, is_behind, scatter, summarise_sweep, sweep_markdown

SHARED = {"score": "float", "split": "development", "duration": "5 steps"}


def runs(*scores: float | None) -> list[Trial]:
    return [
        Trial(seed=seed, bpb=bpb, parameters=1000, tokens=5, seconds=1.0)
        for seed, bpb in enumerate(scores)
    ]


def test_the_interval_is_that_of_the_paired_t_test() -> None:
    a, b = [1.52, 1.55, 1.50], [1.49, 1.48, 1.495]
    found = paired_difference([x - y for x, y in zip(a, b, strict=True)])
    wanted = stats.ttest_rel(a, b)
    low, high = wanted.confidence_interval(0.95)
    assert (found["low"], found["high"], found["p"]) == pytest.approx((low, high, wanted.pvalue))


@pytest.mark.parametrize(("gaps", "p"), [([0.1], None), ([0.1, 0.1], 0.0), ([0.0, 0.0], 1.0)])
def test_one_pair_has_no_interval_and_equal_pairs_are_certain(
    gaps: list[float], p: float | None
) -> None:
    found = paired_difference(gaps)
    assert found["mean"] == pytest.approx(gaps[0]) and found["p"] == p


def test_scatter_is_pooled_over_variants_and_needs_two_seeds_of_two() -> None:
    values = {"baseline": {0: 1.0, 1: 1.2}, "a": {0: 1.1, 1: 1.34}, "b": {0: 0.9}}
    assert scatter(values) == (pytest.approx(0.02 * 2**0.5), 1)
    assert scatter({**values, "a": {0: 1.1}}) is None
    assert scatter({}) is None


def test_behind_is_more_than_the_rivals_scatter_and_never_the_baseline() -> None:
    rivals = {"baseline": {0: 1.0, 1: 1.01, 2: 1.02}, "a": {0: 1.001, 1: 1.012, 2: 1.018}}
    assert is_behind({**rivals, "bad": {0: 1.1}}, "bad")
    assert not is_behind({**rivals, "fair": {0: 1.004}}, "fair")
    assert not is_behind({**rivals, "good": {0: 0.5}}, "good")
    assert not is_behind({**rivals, "good": {0: 0.5}}, "baseline")
    assert not is_behind({"baseline": {0: 1.0}, "bad": {0: 9.0}}, "bad")
    assert not is_behind({**rivals, "new": {}}, "new")


def test_differences_are_taken_over_common_seeds_and_the_table_says_what_is_missing() -> None:
    trials = {"baseline": runs(1.5, 1.6, 1.7), "a": runs(1.4, None, 1.62), "late": runs(None)}
    notes = {"a": "not finished", "late": "behind: stopped at 75% of seed 0"}
    found = summarise_sweep("pocket", trials, settings=SHARED, notes=notes)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert not found["complete"] and found["scatter"]["freedom"] == 1
    base, a, late = found["variants"]
    assert base["difference"] is None and late["bpb"] is None and late["difference"] is None
    assert a["seeds"] == [0, 2] and a["difference"]["mean"] == pytest.approx(-0.09)
    lines = sweep_markdown(found).splitlines()
    assert "baseline" in lines[4] and "-0.0900" in lines[5] and "75% of seed 0" in lines[6]
    assert "float weights, development split, 5 steps each" in lines[8]
