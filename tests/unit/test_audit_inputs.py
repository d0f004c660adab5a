"""Wrong and odd paths: nothing is called clean that was not read, and no odd file name breaks an
output.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from niblick.audit import conduct, render
from niblick.audit.review import review
from niblick.audit.types import Report
from niblick.cli import audit as command
from unit.audit_programs import PLAIN, SCORE_FIRST, program


def test_an_empty_folder_and_a_script_that_scores_nothing_are_not_clean(tmp_path: Path) -> None:
    assert review(tmp_path).verdict == "hold_unclear"
    (tmp_path / "train_gpt.py").write_text("print('hello')\n")
    report = review(tmp_path)
    assert report.verdict == "hold_unclear" and any(f.rule == "followed" for f in report.findings)


def test_links_out_of_the_folder_are_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside.py"
    outside.write_text("SECRET = 1\nloss = val_bpb = 0\n")
    folder = tmp_path / "entry"
    folder.mkdir()
    (folder / "train_gpt.py").symlink_to(outside)
    (folder / "README.md").symlink_to(outside)
    (folder / "submission.json").symlink_to(outside)
    (folder / "again").symlink_to(folder)
    report = review(folder)
    assert report.verdict == "hold_unclear" and any(
        "no Python script" in f.evidence for f in report.findings
    )


@pytest.mark.parametrize("data", [b"\x00\x01\x02" * 99, b"\x1f\x8b" + b"x" * 50, b"def (:\n"])
def test_files_that_are_no_program_are_import_failures(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "train_gpt.py").write_bytes(data)
    assert review(tmp_path / "train_gpt.py").verdict == "import_fail"


def test_sarif_places_every_finding_below_the_reviewed_path(tmp_path: Path) -> None:
    script = tmp_path / "train_gpt.py"
    script.write_text(program(SCORE_FIRST, main="adapt(net, held, s)"))
    report = review(script)
    finding = next(f for f in report.findings if f.span is not None)
    assert finding.span is not None
    spans = [
        replace(finding.span, file=name)
        for name in (".", "kit/scoring.py", "/etc/x", "train_gpt.py", "")
    ]
    odd = replace(report, findings=tuple(replace(finding, span=span) for span in spans))
    results = json.loads(render.reports_sarif([odd], "1"))["runs"][0]["results"]
    places = [r["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] for r in results]
    assert len(places) == 5 and all(
        str(tmp_path) in f"/{place}" or str(tmp_path) in place for place in places
    )


def test_a_path_that_breaks_the_audit_is_undecided_and_the_others_are_reviewed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("good", "bad"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train_gpt.py").write_text(program(PLAIN, main="evaluate(net, held, s)"))

    def breaks(path: Path, **options: Any) -> Report:
        if path.name == "bad":
            raise ZeroDivisionError("hostile")
        return plain(path, **options)

    plain = conduct.audit
    monkeypatch.setattr("niblick.audit.conduct.audit", breaks)
    reports = command.audit_all(
        [tmp_path / "good", tmp_path / "bad"], run_code=False, trust=False, script=None
    )
    assert reports[0] == plain(tmp_path / "good", run_code=False)
    assert reports[1].verdict == "hold_unclear" and "hostile" in reports[1].findings[0].evidence
