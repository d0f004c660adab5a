"""Submissions reviewed together get the verdicts and the findings of one at a time."""

from __future__ import annotations

from pathlib import Path

from niblick.audit.conduct import audit
from niblick.audit.types import Report
from niblick.cli.audit import audit_all
from unit.audit_hostile import PAIRS

_NAMES = (
    "a leading space that is counted twice",
    "a tally of tokens that is halved on its way back",
    "training in an assertion",
    "counts added to weights",
    "a replaced logarithm",
    "exec under another name",
)


def test_a_dozen_read_together_say_what_each_says_alone(tmp_path: Path) -> None:
    paths = []
    for number, text in enumerate(text for name in _NAMES for text in PAIRS[name]):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "train_gpt.py").write_text(text)
        paths.append(folder)
    together = audit_all(paths, run_code=False, trust=False, script=None)
    alone = [audit(path, run_code=False) for path in reversed(paths)][::-1]
    assert [said(report) for report in together] == [said(report) for report in alone]
    clean = [report.verdict.startswith("clean") for report in together]
    assert clean == [False, True] * len(_NAMES)


def said(report: Report) -> object:
    """All that a report says but how long it took."""
    return report.verdict, [
        (finding.rule, finding.severity, finding.verdict, finding.evidence)
        for finding in report.findings
    ]
