"""The ablation table: Welch intervals that agree with scipy, and rows that can be read."""

from __future__ import annotations

import json
from typing import Any

import pytest
from scipy import stats

from niblick.scoring.ablate import ablation_markdown, difference_interval, summarise_ablation


def card(seed: int, bpb: float) -> dict[str, Any]:
    return {
        "seed": seed,
        "valid": True,
        "parameters": 1000,
        "artifact_bytes": 900,
        "packed_bpb": bpb,
        "float_bpb": bpb - 0.01,
        "train_tokens": 5,
    }


def test_the_interval_is_welchs() -> None:
    a, b = [1.52, 1.55, 1.50], [1.49, 1.48, 1.495, 1.5]
    found = difference_interval(a, b)
    wanted = stats.ttest_ind(a, b, equal_var=False)
    low, high = wanted.confidence_interval(0.95)
    assert (found["low"], found["high"], found["p"]) == pytest.approx((low, high, wanted.pvalue))


def test_one_seed_gives_a_difference_without_an_interval() -> None:
    found = difference_interval([1.5], [1.4])
    assert found == {"mean": pytest.approx(0.1), "low": None, "high": None, "p": None}


def test_the_table_shows_the_whole_recipe_first_and_each_variant_against_it() -> None:
    cards = {
        "baseline": [card(s, 1.5 + s / 1000) for s in range(3)],
        "without-smear": [card(s, 1.6) for s in range(3)],
    }
    found = summarise_ablation("pocket", cards)
    assert json.loads(json.dumps(found)) == found
    assert [row["variant"] for row in found["variants"]] == ["baseline", "without-smear"]
    assert found["variants"][0]["difference"] is None
    assert found["variants"][1]["difference"]["mean"] == pytest.approx(0.099)
    lines = ablation_markdown(found).splitlines()
    assert "baseline" in lines[4] and "+0.0990" in lines[5] and "3 seed" in lines[7]
