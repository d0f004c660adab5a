"""The losses of a short run, to six digits: a change that moves them is either a mistake or a
decision to record.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from training_runs import run, tiny_dataset, tiny_recipe

LOSSES = [
    5.557966,
    5.266862,
    4.828991,
    4.404571,
    4.011941,
    3.647111,
    3.440222,
    3.345846,
    3.097901,
    3.099493,
    2.931607,
    2.939862,
]
VALIDATIONS = [6.585961, 5.26709, 4.65272, 4.470853]


def test_a_short_run_has_the_losses_it_always_had(tmp_path: Path) -> None:
    result = run(tiny_recipe(), tiny_dataset(tmp_path / "shards"), tmp_path / "run")
    rows = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    assert [row["loss"] for row in rows if "loss" in row] == pytest.approx(LOSSES, abs=2e-4)
    assert [bpb for _, bpb in result.validations] == pytest.approx(VALIDATIONS, abs=2e-4)
