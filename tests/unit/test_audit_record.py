"""Rules of the record: folder, fields, size, time, seeds, significance, and the claim against the
logs.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from niblick.audit.conduct import other_parameters
from niblick.audit.record import record_findings
from niblick.audit.record.logs import parse_log
from niblick.audit.record.statistics import significance, upper_tail
from niblick.audit.submission import read_submission
from niblick.audit.types import Finding, Severity

LOG = """
model_params:1000000
seed:{seed}
step:100/200 train_loss:3.0 train_time:1000ms
step:200/200 val_loss:2.2000 val_bpb:1.3000 train_time:{train}ms
Code size: {code} bytes
Total submission size int8+zlib: 15900000 bytes
final_int8_roundtrip val_loss:{loss:.6f} val_bpb:{bpb:.6f} eval_time:{eval}ms
"""


def record(
    folder: Path,
    claim: dict[str, Any] | None = None,
    logs: tuple[dict[str, Any], ...] = (),
    **files: bytes,
) -> Path:
    """A folder named as on the ten-minute track, with a script of 40 bytes, a claim and logs."""
    root = folder / "track_10min_16mb" / "mine"
    root.mkdir(parents=True)
    (root / "train_gpt.py").write_bytes(b"x = 1\n".ljust(40, b"#"))
    (root / "README.md").write_text("# mine\n")
    full = {
        "name": "mine",
        "author": "me",
        "date": "2026-01-01",
        "val_bpb": 1.25,
        "bytes_total": 15_900_000,
    }
    (root / "submission.json").write_text(json.dumps(full | (claim or {})))
    for number, values in enumerate(logs):
        filled = {
            "seed": number,
            "train": 599_000,
            "code": 40,
            "bpb": 1.25,
            "loss": 2.1,
            "eval": 90_000,
        } | values
        (root / f"train_seed{number}.log").write_text(LOG.format(**filled))
    for name, content in files.items():
        (root / name.replace("__", ".")).write_bytes(content)
    return root


def found(root: Path) -> dict[str, Finding]:
    """Findings by rule."""
    return {finding.rule: finding for finding in record_findings(read_submission(root))[1]}


def test_a_complete_record_has_no_findings(tmp_path: Path) -> None:
    assert found(record(tmp_path, logs=({}, {}, {}))) == {}


def test_missing_files_and_fields_are_notes_and_never_flags(tmp_path: Path) -> None:
    root = record(tmp_path, claim={"author": None})
    (root / "README.md").unlink()
    findings = found(root)
    assert {"record-missing-file", "record-missing-field", "record-seeds"} <= findings.keys()
    assert "README.md, training logs" in findings["record-missing-file"].evidence
    assert all(
        each.severity is Severity.NOTE and each.verdict is None for each in findings.values()
    )


def test_a_lone_script_only_lacks_a_record(tmp_path: Path) -> None:
    (tmp_path / "train_gpt.py").write_text("x = 1\n")
    assert found(tmp_path / "train_gpt.py").keys() == {"record-missing-file"}


def test_shipped_files_over_the_cap_are_a_breach_and_exactly_at_it_are_not(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    at = record(tmp_path / "a", logs=({}, {}, {}), final_model__int6__ptz=bytes(16_000_000 - 40))
    assert "record-size" not in found(at)
    over = record(tmp_path / "b", logs=({}, {}, {}), final_model__int6__ptz=bytes(16_000_000 - 39))
    finding = found(over)["record-size"]
    assert (finding.severity, finding.verdict) == (Severity.BREACH, "flag_other")
    assert "16,000,001" in finding.evidence


def test_artifacts_that_the_script_names_together_are_added_up(tmp_path: Path) -> None:
    halves = {"one__int6__ptz": bytes(9_000_000), "two__int6__ptz": bytes(9_000_000)}
    root = record(tmp_path, logs=({}, {}, {}), **halves)
    assert "record-size" not in found(root)
    (root / "train_gpt.py").write_text("for name in ('one.int6.ptz', 'two.int6.ptz'): open(name)\n")
    finding = found(root)["record-size"]
    assert finding.severity is Severity.WARNING and "names 2 artifacts" in finding.evidence


def test_a_claim_over_the_cap_alone_asks_the_author(tmp_path: Path) -> None:
    finding = found(record(tmp_path, claim={"bytes_total": 17_000_000}))["record-size"]
    assert (finding.severity, finding.verdict) == (Severity.WARNING, None)


def test_training_past_ten_minutes_in_every_log_is_a_breach(tmp_path: Path) -> None:
    finding = found(
        record(tmp_path, logs=({"train": 700_000}, {"train": 701_000}, {"train": 702_000}))
    )["record-time"]
    assert (finding.severity, finding.verdict) == (Severity.BREACH, "flag_other")
    assert "702.0 s" in finding.evidence


def test_one_long_log_of_several_is_a_warning(tmp_path: Path) -> None:
    finding = found(record(tmp_path, logs=({}, {}, {"train": 9_000_000})))["record-time"]
    assert finding.severity is Severity.WARNING


def test_an_evaluation_past_ten_minutes_is_a_breach(tmp_path: Path) -> None:
    findings = found(record(tmp_path, logs=({}, {}, {"eval": 700_000})))
    assert findings["record-time"].severity is Severity.BREACH


def test_a_score_that_no_log_shows_is_a_warning(tmp_path: Path) -> None:
    finding = found(record(tmp_path, claim={"val_bpb": 1.2}, logs=({}, {}, {})))["record-score"]
    assert (finding.severity, finding.verdict) == (Severity.WARNING, None)
    assert "1.25000" in finding.evidence


def test_a_claimed_mean_of_the_seeds_agrees(tmp_path: Path) -> None:
    logs = ({"bpb": 1.24}, {"bpb": 1.25}, {"bpb": 1.29})
    assert "record-score" not in found(record(tmp_path, claim={"val_bpb": 1.26}, logs=logs))


@pytest.mark.parametrize(
    "claim", ["1.2500", {"1337": 1.24, "42": "1.26"}, {"mean": 1.25, "std": 0.1}]
)
def test_a_claim_may_be_quoted_or_given_by_seed(tmp_path: Path, claim: object) -> None:
    data, _ = record_findings(
        read_submission(record(tmp_path, claim={"val_bpb": claim}, logs=({}, {}, {})))
    )
    assert data["claimed_bpb"] == pytest.approx(1.25)


@pytest.mark.parametrize("claim", [None, "to be done", [1], float("nan"), 10**400, {"a": "b"}])
def test_a_claim_that_is_no_number_is_missing(tmp_path: Path, claim: object) -> None:
    findings = found(record(tmp_path, claim={"val_bpb": claim}, logs=({}, {}, {})))
    assert "val_bpb" in findings["record-missing-field"].evidence


def test_a_log_of_another_model_is_a_warning(tmp_path: Path) -> None:
    said, _ = record_findings(read_submission(record(tmp_path, logs=({}, {}, {}))))
    (finding,) = other_parameters(said, 2_000_000)
    assert finding.severity is Severity.WARNING
    assert "1,000,000" in finding.evidence
    assert "2,000,000" in finding.evidence
    for agreeing in (1_000_000, 1_001_000, None):
        assert list(other_parameters(said, agreeing)) == []
    assert (
        list(other_parameters({"logs": [3, {"parameters": "x"}], "claimed_parameters": []}, 7))
        == []
    )


def test_an_improvement_that_is_too_small_or_uncertain_is_named(tmp_path: Path) -> None:
    logs = (
        {"bpb": 1.249, "loss": 2.098},
        {"bpb": 1.25, "loss": 2.1},
        {"bpb": 1.251, "loss": 2.102},
    )
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    close = found(record(tmp_path / "a", claim={"comparison_baseline_bpb": 1.2515}, logs=logs))
    assert "0.005 at p < 0.01" in close["record-significance"].evidence
    far = found(record(tmp_path / "b", claim={"comparison_baseline_bpb": 1.30}, logs=logs))
    assert "record-significance" not in far


def test_the_record_describes_claim_and_logs(tmp_path: Path) -> None:
    data, _ = record_findings(
        read_submission(record(tmp_path, logs=({"bpb": 1.24}, {"bpb": 1.26})))
    )
    assert (data["claimed_bpb"], data["mean_bpb"], data["seeds"]) == (1.25, 1.25, [0, 1])
    assert json.loads(json.dumps(data)) == data


@pytest.mark.parametrize(
    ("t", "freedom", "tail"),
    [
        (0.0, 3, 0.5),
        (6.965, 2, 0.01),
        (4.541, 3, 0.01),
        (31.821, 1, 0.01),
        (2.228, 10, 0.025),
        (-2.228, 10, 0.975),
    ],
)
def test_tails_agree_with_printed_tables(t: float, freedom: int, tail: float) -> None:
    assert math.isclose(upper_tail(t, freedom), tail, abs_tol=2e-5)


def test_one_seed_proves_nothing_and_equal_seeds_prove_their_margin() -> None:
    assert significance([2.0], 2.1) is None
    same = significance([2.0, 2.0, 2.0], 2.1)
    assert same is not None
    assert same.holds
    assert not significance([2.0, 2.0], 2.001).holds  # type: ignore[union-attr]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=60), max_size=12))
def test_any_text_can_be_read_as_a_log(lines: list[str]) -> None:
    log = parse_log(lines, "x.log")
    assert log.parameters is None or log.parameters >= 10_000
    assert all(math.isfinite(result.bpb) for result in log.results)


def test_numbers_that_no_run_could_print_are_not_taken() -> None:
    nines = "9" * 400
    lines = [
        f"val_bpb: {nines}.0",
        f"final val_loss: {nines}.0 val_bpb: 1.25",
        f"Total submission size: {nines} bytes",
        f"train_time: {nines}s",
        f"params: {nines}",
    ]
    log = parse_log(lines, "x.log")
    assert [(r.loss, r.bpb) for r in log.results] == [(None, 1.25)]
    assert log.train_seconds is None and log.total_bytes == ()
