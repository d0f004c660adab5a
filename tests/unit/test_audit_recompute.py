"""The claimed figure beside one made here."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import niblick
from niblick.artifact.load import shipped_models
from niblick.audit.recompute import artifact, recomputed
from niblick.audit.render import report_text
from niblick.audit.types import Report

TEXT = "The quick brown fox jumps over the lazy dog.\n" * 12
BLANK = Report(
    path="x",
    verdict="clean_neural",
    recommendation="ACCEPT",
    findings=(),
    smoke=None,
    record={"claimed_bpb": 1.5},
)


@pytest.fixture(name="folder")
def _folder(tmp_path: Path) -> Path:
    shutil.copyfile(shipped_models()["pocket"], tmp_path / "artifact.nib")
    (tmp_path / "held-out.txt").write_text(TEXT)
    return tmp_path


def test_the_claim_stands_beside_the_score_of_the_folders_own_artifact(folder: Path) -> None:
    own = niblick.evaluate(folder / "artifact.nib", folder / "held-out.txt").bpb
    report = recomputed(BLANK, folder, folder / "held-out.txt")
    assert report.record["recomputed_bpb"] == pytest.approx(own, abs=1e-6)
    assert [report.record[name] for name in ("dim", "layers", "vocab")] == [128, 8, 6144]
    assert f"1.50000 claimed; {own:.5f} recomputed from artifact.nib" in report_text(report)
    assert [f.rule for f in report.findings] == ["record-recomputed"]
    assert report.verdict == "clean_neural"


def test_a_claim_that_is_the_artifacts_own_score_is_no_finding(folder: Path) -> None:
    own = niblick.evaluate(folder / "artifact.nib", folder / "held-out.txt").bpb
    (folder / "submission.json").write_text(json.dumps({"val_bpb": own}))
    (folder / "train_gpt.py").write_text("print()\n")
    report = niblick.audit(folder, static=True, data=folder / "held-out.txt")
    assert "record-recomputed" not in {f.rule for f in report.findings}
    assert report.record["recomputed_bpb"] == pytest.approx(own, abs=1e-6)


def test_what_cannot_be_scored_is_said_and_costs_nothing_else(folder: Path) -> None:
    (folder / "artifact.nib").write_bytes(b"none of ours")
    report = recomputed(BLANK, folder, folder / "held-out.txt")
    assert "not recomputed: scoring failed" in report_text(report)
    assert (report.verdict, report.findings) == ("clean_neural", ())


def test_nothing_of_the_folder_is_imported_where_it_is_scored(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("json", "numpy", "niblick"):
        (folder / f"{name}.py").write_text("open('planted', 'w').write('ran')\n")
    monkeypatch.chdir(folder)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    recomputed(BLANK, folder, folder / "held-out.txt")
    assert not (folder / "planted").exists()


def test_links_and_several_artifacts_are_not_scored(folder: Path) -> None:
    (folder / "other.nib").symlink_to(folder / "artifact.nib")
    assert artifact(folder) == folder / "artifact.nib"
    shutil.copyfile(folder / "artifact.nib", folder / "third.nib")
    assert artifact(folder) == "the folder holds 2 artifacts (*.nib), expected one"
